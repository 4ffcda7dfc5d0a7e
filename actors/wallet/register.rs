//! `convoke register`: buys a hotkey a slot on a subnet, once, with the coldkey of the same wallet.
//!
//! It is a command of its own because only a coldkey can pay: the node never sees one. What may be refused is asked for
//! before the password: the chain, the subnet, the slot, its price, the money. A hotkey that has a slot is left alone, so
//! the command may be repeated, and is, when nobody knows what became of a call.

use std::future::Future;
use std::io;
use std::time::Duration;

use convoke::address::to_ss58;
use convoke::chain::AccountId;
use convoke::chain::genesis::RAO_PER_TAO;
use convoke::hotkey::HotkeyPair;
use convoke::terms::{Block, Hotkey};
use tokio::time::timeout;

use super::{Wallet, WalletError};
use crate::chain::{ChainError, ChainRead, Client, ClientConfig, Metagraph, Neuron, Outcome};

/// How long a chain may take to answer somebody who waits for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the faucet fills a coldkey up to, in rao: the dearest slot there is, many times over.
const FAUCET_FUNDS: u64 = 1000 * RAO_PER_TAO;

/// Who is to have a slot where, and what it may cost.
#[derive(Debug, Clone)]
pub struct Registration {
    /// The chain's `ws://` or `wss://` address.
    pub chain: String,
    /// The subnet.
    pub netuid: u16,
    /// The coldkey that pays, and the hotkey.
    pub wallet: Wallet,
    /// The hotkey's name.
    pub hotkey: String,
    /// The most a slot may cost, in rao; what it costs when it is asked, if there is none.
    pub limit_price: Option<u64>,
    /// Whether a development chain's faucet pays.
    pub faucet: bool,
}

/// Why there is no slot.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// No address of a chain.
    #[error("`{url}` is no chain's address: write ws://host:port, or wss://host:port")]
    Address {
        /// What was given.
        url: String,
    },
    /// Nobody answers.
    #[error("no chain answers at {url}: see that its node runs, or name another with --chain")]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        source: ChainError,
    },
    /// Somebody answers, but not as a chain would.
    #[error("the chain at {url} cannot be used")]
    Chain {
        /// Where.
        url: String,
        /// Why.
        source: ChainError,
    },
    /// A key cannot be used.
    #[error(transparent)]
    Wallet(#[from] WalletError),
    /// The two halves of the coldkey are of two keys.
    #[error("the wallet's coldkey is {coldkey}, but its coldkeypub.txt says {public}: put the right one there")]
    Halves {
        /// What the coldkey is.
        coldkey: String,
        /// What is said of it.
        public: String,
    },
    /// There is nothing to register on.
    #[error("this chain has no subnet {netuid}: name another with --netuid")]
    NoSubnet {
        /// Asked for.
        netuid: u16,
    },
    /// Nobody may register.
    #[error("subnet {netuid} takes no registrations at present: its owner closed them, try again later")]
    Closed {
        /// Asked for.
        netuid: u16,
    },
    /// The price is above the limit.
    #[error(
        "a slot costs {} TAO, more than the limit of {} TAO: raise --limit-price, or wait for the price to fall",
        tao(*price), tao(*limit)
    )]
    TooDear {
        /// What it costs, in rao.
        price: u64,
        /// What it may cost.
        limit: u64,
    },
    /// The price went up meanwhile.
    #[error(
        "the price of a slot rose above {} TAO while it was bought: ask again, or give a higher --limit-price",
        tao(*limit)
    )]
    Risen {
        /// What it may cost, in rao.
        limit: u64,
    },
    /// There is not enough money.
    #[error(
        "the coldkey {coldkey} has {} TAO, and a slot costs {} TAO: send it the rest, and a little for the fee",
        tao(*balance), tao(*price)
    )]
    Poor {
        /// Whose.
        coldkey: String,
        /// What it has, in rao.
        balance: u64,
        /// What it needs.
        price: u64,
    },
    /// Only a development chain has a faucet.
    #[error(
        "the chain at {url} has no faucet, only a development chain has one: leave --faucet out, and send TAO to {coldkey}"
    )]
    NoFaucet {
        /// Which chain.
        url: String,
        /// Who would have got something.
        coldkey: String,
    },
    /// The hotkey is another's.
    #[error("the hotkey {hotkey} belongs to another coldkey on this chain: make a new one with `convoke wallet new`")]
    Owned {
        /// Which.
        hotkey: String,
    },
    /// Nobody can be pruned.
    #[error("subnet {netuid} is full, and nobody on it may be replaced yet: try again in some blocks")]
    Full {
        /// Asked for.
        netuid: u16,
    },
    /// The chain has a reason of its own.
    #[error("the chain refused the registration ({reason}): see that the coldkey can pay the fee too, and ask again")]
    Refused {
        /// The chain's word for it.
        reason: String,
    },
    /// The call is gone.
    #[error("nobody knows what became of the registration: ask again, a slot is not bought twice")]
    Unknown,
}

/// A hotkey's slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// The slot, as the chain has it.
    pub neuron: Neuron,
    /// The block after which it was read.
    pub at: Block,
}

/// Buys the slot, unless the hotkey has one. `password` is asked with the words given, for a key that needs it; `tell`
/// takes lines for whoever waits.
///
/// # Errors
/// One sentence, with what to do about it.
pub async fn register(
    asked: &Registration,
    password: impl Fn(&str) -> io::Result<String> + Send + Clone + 'static,
    tell: impl Fn(&str),
) -> Result<Slot, RegisterError> {
    let public = match asked.wallet.coldkey_account() {
        Ok(account) => Some(account),
        // It is read out of the coldkey then.
        Err(WalletError::Missing { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let hotkey =
        open(asked, &password, |wallet, name, password| wallet.hotkey(name, || password("Password of the hotkey: ")));
    let hotkey = hotkey.await?;
    let office = Office::enter(asked, hotkey.hotkey()).await?;
    let metagraph = office.metagraph().await?;
    if let Some(slot) = slot(&metagraph, &hotkey.hotkey()) {
        let Slot { neuron, at } = &slot;
        tell(&format!(
            "{} has uid {} on subnet {} already, at block {at}",
            to_ss58(&neuron.hotkey),
            neuron.uid,
            asked.netuid
        ));
        return Ok(slot);
    }
    if !metagraph.hyperparameters.registration_allowed {
        return Err(RegisterError::Closed { netuid: asked.netuid });
    }
    let (price, limit) = (metagraph.burn, asked.limit_price.unwrap_or(metagraph.burn));
    tell(&format!("a slot on subnet {} costs {} TAO after block {}", asked.netuid, tao(price), metagraph.block));
    if price > limit {
        return Err(RegisterError::TooDear { price, limit });
    }
    if let Some(account) = public {
        office.see_money(&account, price, &tell).await?;
    }
    let coldkey =
        open(asked, &password, |wallet, _, password| wallet.coldkey(|| password("Password of the coldkey: ")));
    let coldkey = coldkey.await?;
    match public {
        Some(public) if public != coldkey.hotkey() => {
            let (coldkey, public) = (to_ss58(&coldkey.hotkey()), to_ss58(&public));
            return Err(RegisterError::Halves { coldkey, public });
        }
        Some(_) => {}
        None => office.see_money(&coldkey.hotkey(), price, &tell).await?,
    }
    let slot = office.buy(hotkey, coldkey, limit).await?;
    let Slot { neuron, at } = &slot;
    tell(&format!("{} has uid {} on subnet {} since block {at}", to_ss58(&neuron.hotkey), neuron.uid, asked.netuid));
    Ok(slot)
}

/// Opens a key on a thread that may wait for a person, and for half a gigabyte.
fn open<P: Send + Clone + 'static>(
    asked: &Registration,
    password: &P,
    open: fn(&Wallet, &str, P) -> Result<super::Key, WalletError>,
) -> impl Future<Output = Result<HotkeyPair, WalletError>> {
    let (wallet, name, password) = (asked.wallet.clone(), asked.hotkey.clone(), password.clone());
    let opened = tokio::task::spawn_blocking(move || open(&wallet, &name, password));
    async {
        match opened.await {
            Ok(key) => key.map(|key| key.pair),
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
}

fn slot(metagraph: &Metagraph, hotkey: &Hotkey) -> Option<Slot> {
    metagraph.by_hotkey(hotkey).map(|neuron| Slot { neuron: neuron.clone(), at: metagraph.block })
}

/// Where slots are sold.
struct Office<'a> {
    asked: &'a Registration,
    client: Client,
    hotkey: Hotkey,
}

impl<'a> Office<'a> {
    async fn enter(asked: &'a Registration, hotkey: Hotkey) -> Result<Self, RegisterError> {
        let url = asked.chain.clone();
        if !url.starts_with("ws://") && !url.starts_with("wss://") {
            return Err(RegisterError::Address { url });
        }
        let config = ClientConfig { endpoints: vec![url.clone()], netuid: asked.netuid, block_time: None };
        let silent = || ChainError::Unreachable { reason: format!("no answer within {} s", PATIENCE.as_secs()) };
        let client = timeout(PATIENCE, Client::connect(config)).await.unwrap_or_else(|_| Err(silent()));
        let office = match client {
            Ok(client) => Self { asked, client, hotkey },
            Err(source @ ChainError::Unreachable { .. }) => return Err(RegisterError::Unreachable { url, source }),
            Err(source) => return Err(RegisterError::Chain { url, source }),
        };
        if office.chain(office.client.has_subnet(office.best())).await? {
            Ok(office)
        } else {
            Err(RegisterError::NoSubnet { netuid: asked.netuid })
        }
    }

    fn best(&self) -> Block {
        self.client.heads().borrow().best.number
    }

    async fn chain<T>(&self, read: impl Future<Output = Result<T, ChainError>>) -> Result<T, RegisterError> {
        let url = || self.asked.chain.clone();
        read.await.map_err(|source| match source {
            ChainError::Unreachable { .. } => RegisterError::Unreachable { url: url(), source },
            source => RegisterError::Chain { url: url(), source },
        })
    }

    async fn metagraph(&self) -> Result<std::sync::Arc<Metagraph>, RegisterError> {
        self.chain(self.client.metagraph(self.best())).await
    }

    /// Sees to it that the coldkey can pay the price.
    async fn see_money(&self, coldkey: &AccountId, price: u64, tell: impl Fn(&str)) -> Result<(), RegisterError> {
        let name = to_ss58(coldkey);
        let mut balance = self.chain(self.client.balance(self.best(), *coldkey)).await?;
        if self.asked.faucet {
            if !self.chain(self.client.is_development()).await? {
                return Err(RegisterError::NoFaucet { url: self.asked.chain.clone(), coldkey: name });
            }
            balance = match self.client.dev_fund(*coldkey, FAUCET_FUNDS).await {
                Err(ChainError::Refused { .. }) => {
                    return Err(RegisterError::NoFaucet { url: self.asked.chain.clone(), coldkey: name });
                }
                funded => self.chain(std::future::ready(funded)).await?,
            };
        }
        tell(&format!("the coldkey {name} has {} TAO", tao(balance)));
        if balance < price { Err(RegisterError::Poor { coldkey: name, balance, price }) } else { Ok(()) }
    }

    async fn buy(&self, hotkey: HotkeyPair, coldkey: HotkeyPair, limit: u64) -> Result<Slot, RegisterError> {
        let account = coldkey.hotkey();
        let outcome = self.chain(self.client.writer(hotkey).register(coldkey, limit)).await?;
        let at = match &outcome {
            Outcome::Included { block, .. } => *block,
            _ => self.best(),
        };
        // Whatever was said of the call: the chain is what counts, and a call of before may have been in time.
        let metagraph = self.chain(self.client.metagraph(at)).await?;
        if let Some(slot) = slot(&metagraph, &self.hotkey) {
            return Ok(slot);
        }
        let netuid = self.asked.netuid;
        Err(match outcome {
            Outcome::DispatchFailed { name, .. } => match name.as_str() {
                "RegistrationPriceLimitExceeded" => RegisterError::Risen { limit },
                "NotEnoughBalanceToStake" | "NotEnoughBalanceToPaySwapColdKey" | "CannotWithdraw" => {
                    let balance = self.chain(self.client.balance(at, account)).await?;
                    RegisterError::Poor { coldkey: to_ss58(&account), balance, price: metagraph.burn }
                }
                "SubNetRegistrationDisabled" => RegisterError::Closed { netuid },
                "SubnetNotExists" => RegisterError::NoSubnet { netuid },
                "NonAssociatedColdKey" => RegisterError::Owned { hotkey: to_ss58(&self.hotkey) },
                "NoNeuronIdAvailable" => RegisterError::Full { netuid },
                _ => RegisterError::Refused { reason: name },
            },
            Outcome::PoolRejected { code, .. } => RegisterError::Refused { reason: format!("code {code}") },
            Outcome::Included { .. } | Outcome::Expired | Outcome::Unknown => RegisterError::Unknown,
        })
    }
}

/// An amount as people write it, in TAO.
#[must_use]
pub fn tao(rao: u64) -> String {
    let (whole, part) = (rao / RAO_PER_TAO, rao % RAO_PER_TAO);
    let text = format!("{whole}.{part:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// An amount in TAO as people write it, in rao.
///
/// # Errors
/// What is wrong with it.
pub fn rao(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no amount of TAO: write digits, perhaps a point, and at most nine digits more");
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    if !is_number(whole) || !is_number(part) || part.len() > 9 {
        return Err(wrong());
    }
    let number = |digits: &str| digits.parse::<u64>().map_err(|_| wrong());
    let part = number(&format!("{part:0<9}"))?;
    let rao = number(whole)?.checked_mul(RAO_PER_TAO).and_then(|whole| whole.checked_add(part));
    rao.ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    use convoke::chain::{Genesis, GenesisNeuron};
    use convoke::terms::Uid;

    use super::super::CostOf;
    use super::*;
    use crate::chain::host::development_genesis;
    use crate::chain::{ChainServer, ServerConfig};

    const NETUID: u16 = 7;

    fn genesis() -> Genesis {
        let mut genesis = development_genesis(NETUID, 5);
        let key = |i| HotkeyPair::from_seed(&[i; 32]).hotkey();
        genesis.neurons = vec![GenesisNeuron { hotkey: key(1), coldkey: key(100), stake: 5 }];
        genesis
    }

    fn serve(genesis: &Genesis) -> ChainServer {
        let config = ServerConfig::new(([127, 0, 0, 1], 0).into(), Duration::from_millis(50));
        ChainServer::start(genesis, config).unwrap()
    }

    /// A wallet with a coldkey under the password `open sesame` and a hotkey.
    fn wallet(dir: &Path) -> Wallet {
        let wallet = Wallet { cost: CostOf::Nothing, ..Wallet::named(dir, "w").unwrap() };
        wallet.new_coldkey("open sesame").unwrap();
        wallet.new_hotkey("h").unwrap();
        wallet
    }

    fn asked(server: &ChainServer, wallet: &Wallet) -> Registration {
        Registration {
            chain: server.url(),
            netuid: NETUID,
            wallet: wallet.clone(),
            hotkey: "h".to_owned(),
            limit_price: None,
            faucet: false,
        }
    }

    fn sesame(_: &str) -> io::Result<String> {
        Ok("open sesame".to_owned())
    }

    fn never(words: &str) -> io::Result<String> {
        panic!("asked: {words}")
    }

    /// The sentence of a refusal that came before any password.
    async fn refused(asked: &Registration) -> String {
        register(asked, never, |_| {}).await.unwrap_err().to_string()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_slot_is_bought_once_with_the_faucets_money() {
        let (server, dir) = (serve(&genesis()), tempfile::tempdir().unwrap());
        let wallet = wallet(dir.path());
        let asked = Registration { faucet: true, limit_price: Some(RAO_PER_TAO), ..asked(&server, &wallet) };
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = |line: &str| told.lock().unwrap().push(line.to_owned());
        let bought = register(&asked, sesame, tell).await.unwrap();
        let hotkey = wallet.hotkey("h", || never("")).unwrap().pair.hotkey();
        assert_eq!((bought.neuron.uid, bought.neuron.hotkey), (Uid(1), hotkey));
        assert_eq!(bought.neuron.coldkey, wallet.coldkey_account().unwrap());
        let told = std::mem::take(&mut *told.lock().unwrap());
        assert!(told[0].starts_with("a slot on subnet 7 costs 0.0005 TAO after block "), "{told:?}");
        assert!(told[1].ends_with(" has 1000 TAO"), "{told:?}");
        assert!(told[2].contains(&format!("has uid 1 on subnet 7 since block {}", bought.at)), "{told:?}");
        assert!(server.ledger().balance(&bought.neuron.coldkey) < FAUCET_FUNDS);
        // Again: it is there, nothing is paid, and no password is needed.
        let balance = server.ledger().balance(&bought.neuron.coldkey);
        let again = register(&asked, never, |line| assert!(line.contains("already"), "{line}")).await.unwrap();
        assert_eq!(again.neuron.uid, Uid(1));
        assert_eq!(server.ledger().balance(&bought.neuron.coldkey), balance);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn every_refusal_is_a_sentence_and_comes_before_the_password_where_it_can() {
        let (server, dir) = (serve(&genesis()), tempfile::tempdir().unwrap());
        let wallet = wallet(dir.path());
        let coldkey = to_ss58(&wallet.coldkey_account().unwrap());
        let asked = asked(&server, &wallet);
        let poor = format!(
            "the coldkey {coldkey} has 0 TAO, and a slot costs 0.0005 TAO: send it the rest, and a little for the fee"
        );
        assert_eq!(refused(&asked).await, poor);
        let dear = Registration { limit_price: Some(499_999), ..asked.clone() };
        assert!(refused(&dear).await.starts_with("a slot costs 0.0005 TAO, more than the limit of 0.000499999 TAO: "));
        let elsewhere = Registration { netuid: 9, ..asked.clone() };
        assert_eq!(refused(&elsewhere).await, "this chain has no subnet 9: name another with --netuid");
        let nothing = Registration { chain: "localhost:9944".to_owned(), ..asked.clone() };
        assert!(refused(&nothing).await.contains("`localhost:9944` is no chain's address"));
        let missing = Registration { hotkey: "other".to_owned(), ..asked.clone() };
        assert!(refused(&missing).await.contains("make one with `convoke wallet new`"));

        let rich = Registration { faucet: true, ..asked };
        let wrong = register(&rich, |_: &str| Ok("open barley".to_owned()), |_| {}).await.unwrap_err();
        assert!(matches!(wrong, RegisterError::Wallet(WalletError::Password { .. })), "{wrong}");
        let silent = register(&rich, |_: &str| Err(io::Error::other("no terminal")), |_| {}).await.unwrap_err();
        assert!(matches!(silent, RegisterError::Wallet(WalletError::NoPassword { .. })), "{silent}");
        let file = dir.path().join("w/coldkey");
        for legacy in ["$ANSIBLE_VAULT;1.1;AES256", "gAAAAABk"] {
            std::fs::write(&file, legacy).unwrap();
            assert!(refused(&rich).await.contains("open it once with the official tools"));
        }
        std::fs::write(&file, super::super::Key::from_entropy(&[9; 16]).write()).unwrap();
        assert!(refused(&rich).await.ends_with("put the right one there"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_chain_without_a_faucet_or_with_closed_doors_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let wallet = wallet(dir.path());
        let server = serve(&Genesis { sudo: None, ..genesis() });
        let rich = Registration { faucet: true, ..asked(&server, &wallet) };
        assert!(refused(&rich).await.contains("leave --faucet out, and send TAO to 5"));
        let mut closed = genesis();
        closed.hyperparameters.registration_allowed = false;
        let server = serve(&closed);
        assert!(refused(&asked(&server, &wallet)).await.starts_with("subnet 7 takes no registrations at present"));
        let address = server.address();
        server.stop().await;
        let gone = Registration { chain: format!("ws://{address}"), ..asked(&server, &wallet) };
        drop(server);
        assert!(refused(&gone).await.contains("see that its node runs"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_full_subnet_is_refused_by_the_chain() {
        let dir = tempfile::tempdir().unwrap();
        let wallet = wallet(dir.path());
        let mut full = genesis();
        full.hyperparameters.max_allowed_uids = 1;
        full.owner = Some(convoke::chain::Owner { coldkey: Hotkey([1; 32]), hotkey: full.neurons[0].hotkey });
        let server = serve(&full);
        let rich = Registration { faucet: true, ..asked(&server, &wallet) };
        let error = register(&rich, sesame, |_| {}).await.unwrap_err();
        assert!(matches!(error, RegisterError::Full { netuid: NETUID }), "{error}");
    }

    #[test]
    fn amounts_are_read_and_written_as_people_do() {
        for (text, amount) in [("0", 0), ("1", RAO_PER_TAO), ("0.0005", 500_000), ("12.000000001", 12_000_000_001)] {
            assert_eq!(rao(text), Ok(amount));
            assert_eq!(tao(amount), text);
        }
        assert_eq!(rao("18446744073.709551615"), Ok(u64::MAX));
        for text in
            ["", ".", "1.", ".5", "-1", "1e3", "0.0000000001", "18446744073.709551616", "1_0", "99999999999999999999"]
        {
            assert!(rao(text).is_err(), "{text}");
        }
    }
}
