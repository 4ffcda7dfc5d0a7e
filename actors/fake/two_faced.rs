//! A node that says two things: its seal, or its vote, is one in one block and another in the next.
//!
//! A miner may make as many payloads as it likes, and a validator as many manifests: nobody asks for what no commitment names. What the
//! others can be told apart by is what the chain says at the blocks at which they read it. So the first of the two names a payload or
//! a manifest that nobody has, and the second is the true one, a block later.

use std::sync::Arc;

use convoke::chain::commitment::Commitment;
use convoke::hotkey::HotkeyPair;
use convoke::terms::{Hotkey, Uid, Weight};

use super::fence::Fence;
use super::weather::Weather;
use crate::chain::{ChainError, ChainFuture, ChainWrite, Outcome};

/// One life's way to the chain, through the weather.
pub struct TwoFaced {
    write: Arc<dyn ChainWrite>,
    weather: Arc<Weather>,
    node: usize,
    fence: Fence,
}

impl TwoFaced {
    /// For as long as the fence stands.
    #[must_use]
    pub fn new(write: Arc<dyn ChainWrite>, weather: Arc<Weather>, node: usize, fence: Fence) -> Arc<Self> {
        Arc::new(Self { write, weather, node, fence })
    }
}

/// The same commitment with another seal and another vote; none if it has neither.
fn other_than(fields: &[Vec<u8>]) -> Option<Vec<Vec<u8>>> {
    let mut commitment = Commitment::parse(fields).ok()?;
    if commitment.seal.is_none() && commitment.manifest.is_none() {
        return None;
    }
    if let Some(seal) = &mut commitment.seal {
        seal.payload.0[0] ^= 1;
        seal.transport.0[0] ^= 1;
    }
    if let Some(vote) = &mut commitment.manifest {
        vote.manifest.0[0] ^= 1;
    }
    Some(commitment.to_fields())
}

impl ChainWrite for TwoFaced {
    fn hotkey(&self) -> Hotkey {
        self.write.hotkey()
    }

    fn commit(&self, fields: Vec<Vec<u8>>) -> ChainFuture<'_, Outcome> {
        let lie = if self.weather.equivocates(self.node) { other_than(&fields) } else { None };
        let Some(lie) = lie else { return self.write.commit(fields) };
        // Once, until the world says so again.
        self.weather.change(self.node, |trouble| trouble.equivocates = false);
        let lied = self.write.commit(lie);
        Box::pin(async move {
            // Whatever became of it.
            lied.await?;
            if self.fence.has_fallen() { Err(ChainError::Stopped) } else { self.write.commit(fields).await }
        })
    }

    fn set_weights(&self, weights: Vec<(Uid, Weight)>, version_key: u64) -> ChainFuture<'_, Outcome> {
        self.write.set_weights(weights, version_key)
    }

    fn register(&self, coldkey: HotkeyPair, limit_price: u64) -> ChainFuture<'_, Outcome> {
        self.write.register(coldkey, limit_price)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use convoke::chain::commitment::ManifestVote;
    use convoke::terms::{Block, ManifestHash, Round, Stake};

    use super::*;
    use crate::chain::host::development_genesis;
    use crate::chain::{Host, HostConfig, Pace};
    use crate::fake::chance::Chance;

    #[tokio::test(start_paused = true)]
    async fn the_chain_says_one_thing_and_then_the_other() {
        let block_time = Duration::from_secs(1);
        let config = HostConfig { block_time, finality_depth: 2, pace: Pace::Virtual, file: None };
        let host = Host::start(&development_genesis(3, 1), config).unwrap();
        let pair = HotkeyPair::from_seed(&[1; 32]);
        host.dev_register(pair.hotkey(), Stake(1)).await.unwrap();
        let weather = Arc::new(Weather::new(Chance::new(1), block_time, &[convoke::terms::EndpointId([1; 32])]));
        let fence = Fence::new();
        let write = TwoFaced::new(host.connect(pair.clone()), Arc::clone(&weather), 0, fence.clone());
        let vote = ManifestVote { round: Round(4), manifest: ManifestHash([9; 32]) };
        let true_word = Commitment { manifest: Some(vote), ..Commitment::default() }.to_fields();
        let said = async |at: u64| {
            let commitments = host.reader().commitments(Block(at)).await.unwrap();
            commitments[&pair.hotkey()].fields.clone()
        };

        // A commitment that says nothing of the kind is let through, and the fault waits.
        weather.change(0, |trouble| trouble.equivocates = true);
        write.commit(Commitment::default().to_fields()).await.unwrap();
        assert!(weather.equivocates(0));
        let outcome = write.commit(true_word.clone()).await.unwrap();
        let Outcome::Included { block: Block(block), .. } = outcome else { panic!("{outcome:?}") };
        assert_ne!(said(block - 1).await, true_word);
        assert_eq!(said(block).await, true_word);
        let lie = Commitment::parse(&said(block - 1).await).unwrap();
        assert_eq!(lie.manifest.unwrap().round, Round(4), "it is of the same round");
        assert!(!weather.equivocates(0), "it is said once");

        weather.change(0, |trouble| trouble.equivocates = true);
        let interrupted = write.commit(true_word);
        fence.fall();
        assert_eq!(interrupted.await, Err(ChainError::Stopped), "the dead say nothing more");
    }
}
