//! Weights as the chain wants them: at once, or committed under a lock that the chain opens by itself.
//!
//! Which of the two is asked of the chain each time, since a subnet's owner may change it. The lock is the beacon's that the
//! chain says it follows (drand's quicknet where it says none), for the round that is out when the chain will look for it,
//! as the epoch schedule at the best block predicts. Where a runtime has the calls only with a mechanism's number, that
//! of the main mechanism is 0.

use convoke::chain::call::Call;
use convoke::chain::commit_reveal::{COMMIT_REVEAL_VERSION, Moment};
use convoke::chain::timelock::{Beacon, LockedWeights};
use convoke::chain::{EpochSchedule, Hyperparameters};
use convoke::hotkey::HotkeyPair;
use convoke::terms::{Uid, Weight};
use rand_core::OsRng;
use subxt::ext::scale_value::{Composite, Value};

use super::failure::Failure;
use super::link::{Link, Online};
use super::read::reading;
use super::values::{At, Values, timestamp_ms};
use super::write::{Asked, Payload, number};
use crate::chain::outcome::{Class, Outcome};
use crate::chain::wire::beacon::Config;
use crate::chain::wire::schema::{self, DRAND, SUBTENSOR};
use crate::chain::{BlockRef, ChainError};

/// How the chain takes weights, at a block.
struct Terms {
    /// Weights must be committed before they are read.
    is_committed: bool,
    reveal_period_epochs: u64,
    /// The form of commits that the chain opens.
    commit_reveal_version: u16,
    schedule: EpochSchedule,
    /// The time of that block.
    now_ms: u64,
    beacon: Beacon,
    /// The runtime has the calls without a mechanism's number.
    has_plain: bool,
    has_plain_commit: bool,
}

/// Sets the signer's weights, or commits them.
pub(super) async fn set_weights(
    link: &Link,
    signer: &HotkeyPair,
    weights: Vec<(Uid, Weight)>,
    version_key: u64,
) -> Result<Outcome, ChainError> {
    let best = link.best();
    let terms = reading(link, |online| async move {
        let at = online.at(best.number, best.hash).await.map_err(|failure| failure.at(link, best.number))?;
        read_terms(&online, &at, link.netuid(), best).await.map_err(|failure| failure.at(link, best.number))
    })
    .await?;
    let (uids, values) = weights.into_iter().map(|(uid, weight)| (uid.0, weight.0)).unzip();
    let weights = LockedWeights { hotkey: signer.hotkey(), uids, values, version_key };
    if terms.is_committed && terms.commit_reveal_version != COMMIT_REVEAL_VERSION {
        // What is locked in another form would be taken, and dropped without a word when it is opened.
        let name = "IncorrectCommitRevealVersion".to_owned();
        return Ok(Outcome::DispatchFailed { class: Class::of_dispatch(&name, best.number), name });
    }
    let payload = if terms.is_committed {
        commit_payload(link, &terms, best, &weights)?
    } else {
        plain_payload(link.netuid(), terms.has_plain, &weights)
    };
    Asked { link, signer, is_commitment: false }.send(&payload).await
}

async fn read_terms(online: &Online, at: &At, netuid: u16, best: BlockRef) -> Result<Terms, Failure> {
    let mut values = Values::new(at, netuid);
    for entry in ["CommitRevealWeightsEnabled", "RevealPeriodEpochs"] {
        values.want(SUBTENSOR, entry, (netuid,))?;
    }
    values.want(SUBTENSOR, "CommitRevealWeightsVersion", ())?;
    values.want(DRAND, "BeaconConfig", ())?;
    values.want_schedule()?;
    values.fetch(online).await?;
    let new = Hyperparameters::default();
    let beacon = match values.get::<Config>(DRAND, "BeaconConfig", ())? {
        Some(config) => config.into_beacon().ok_or_else(|| {
            Failure::Answer(ChainError::Foreign { reason: "its beacon is none: no key, or no period".to_owned() })
        })?,
        None => Beacon::quicknet(),
    };
    let has_call = |name| schema::has_call(at.metadata_ref(), SUBTENSOR, name);
    Ok(Terms {
        is_committed: values.subnet("CommitRevealWeightsEnabled", new.commit_reveal_weights_enabled)?,
        reveal_period_epochs: values.subnet("RevealPeriodEpochs", new.reveal_period_epochs)?,
        commit_reveal_version: values.plain(SUBTENSOR, "CommitRevealWeightsVersion", COMMIT_REVEAL_VERSION)?,
        schedule: values.schedule(best.number)?,
        now_ms: timestamp_ms(online, best.hash).await?,
        beacon,
        has_plain: has_call("set_weights"),
        has_plain_commit: has_call("commit_timelocked_weights"),
    })
}

fn commit_payload(link: &Link, terms: &Terms, best: BlockRef, weights: &LockedWeights) -> Result<Payload, ChainError> {
    let moment = Moment {
        netuid: link.netuid(),
        head: best.number,
        schedule: &terms.schedule,
        reveal_period_epochs: terms.reveal_period_epochs,
        beacon: &terms.beacon,
        now_ms: terms.now_ms,
        block_time_ms: u64::try_from(link.block_time().as_millis()).unwrap_or(u64::MAX),
    };
    let promised = moment.promise(weights, &mut OsRng);
    match promised.map_err(|error| ChainError::Foreign { reason: error.to_string() })? {
        Call::CommitTimelockedWeights { netuid, commit, reveal_round, commit_reveal_version } => {
            let args = vec![
                ("commit", Value::from_bytes(commit)),
                ("reveal_round", number(reveal_round)),
                ("commit_reveal_version", number(commit_reveal_version)),
            ];
            let names = ["commit_timelocked_weights", "commit_timelocked_mechanism_weights"];
            Ok(payload(netuid, names, terms.has_plain_commit, args))
        }
        other => Err(ChainError::Foreign { reason: format!("weights were promised by {other:?}") }),
    }
}

fn plain_payload(netuid: u16, has_plain: bool, weights: &LockedWeights) -> Payload {
    let column = |values: &[u16]| Value::unnamed_composite(values.iter().map(|&value| number(value)));
    let args = vec![
        ("dests", column(&weights.uids)),
        ("weights", column(&weights.values)),
        ("version_key", number(weights.version_key)),
    ];
    payload(netuid, ["set_weights", "set_mechanism_weights"], has_plain, args)
}

/// The call without a mechanism's number, or with it.
fn payload(netuid: u16, [plain, of_mechanism]: [&str; 2], has_plain: bool, rest: Vec<(&str, Value)>) -> Payload {
    let mut args = vec![("netuid", number(netuid))];
    if !has_plain {
        args.push(("mecid", number(0_u8)));
    }
    args.extend(rest);
    Payload::new(SUBTENSOR, if has_plain { plain } else { of_mechanism }, Composite::named(args))
}

#[cfg(test)]
mod tests {
    use convoke::terms::Hotkey;
    use subxt::ext::frame_decode::extrinsics::encode_call_data;

    use super::*;
    use crate::chain::Runtime;

    #[test]
    fn the_calls_are_made_with_and_without_a_mechanisms_number() {
        let runtime = Runtime::recorded();
        let metadata = runtime.metadata();
        let weights = LockedWeights { hotkey: Hotkey([1; 32]), uids: vec![0, 2], values: vec![3, 4], version_key: 5 };
        let commit = || {
            vec![
                ("commit", Value::from_bytes([7; 9])),
                ("reveal_round", number(1_u64 << 40)),
                ("commit_reveal_version", number(4_u16)),
            ]
        };
        let names = ["commit_timelocked_weights", "commit_timelocked_mechanism_weights"];
        for has_plain in [true, false] {
            for payload in [plain_payload(7, has_plain, &weights), payload(7, names, has_plain, commit())] {
                assert!(schema::has_call(metadata, SUBTENSOR, payload.call_name()), "{}", payload.call_name());
                let data =
                    encode_call_data(SUBTENSOR, payload.call_name(), payload.call_data(), metadata, metadata.types());
                let data = data.unwrap();
                let mechanism: &[u8] = if has_plain { &[] } else { &[0] };
                assert!(data[2..].starts_with(&[&7_u16.to_le_bytes()[..], mechanism].concat()), "{data:?}");
            }
        }
    }
}
