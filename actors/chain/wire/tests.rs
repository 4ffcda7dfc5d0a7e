//! What the ledger says arrives as itself at a client of either recorded runtime.

use std::collections::BTreeMap;

use convoke::chain::timelock::{Beacon, LocalBeacon};
use convoke::chain::{Call, Genesis, GenesisNeuron, Hyperparameters, Invalid, Ledger};
use convoke::hotkey::HotkeyPair;
use convoke::terms::{BlockHash, Hotkey};
use proptest::prelude::*;
use subxt::ext::codec::{Compact, Encode};
use subxt::ext::frame_decode::extrinsics::encode_call_data;
use subxt::ext::scale_value::{Composite, Value};

use super::entries::{OfBlock, entries};
use super::extrinsic::{self, EXTRINSIC_BYTES_MAX, blake2_256, faucet_remark, funds_remark};
use super::fields::{Registration, to_info};
use super::schema::{DRAND, SUBTENSOR};
use super::*;

const NETUID: u16 = 7;

fn pair(i: u8) -> HotkeyPair {
    HotkeyPair::from_seed(&[i; 32])
}

/// The recorded runtime, and the newer one where its recording lies beside this checkout.
fn runtimes() -> Vec<Runtime> {
    let newer = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/metadata/subtensor-381-v16.scale");
    let newer = std::fs::read(newer).ok().map(|bytes| Runtime::decode(bytes).unwrap());
    if newer.is_none() {
        eprintln!("the recording of spec version 381 is not here: tested with 365 alone");
    }
    [Runtime::recorded()].into_iter().chain(newer).collect()
}

fn ledger() -> Ledger {
    let mut genesis = Genesis::new(NETUID, 1, 1_000);
    genesis.hyperparameters = Hyperparameters { tempo: 20, burn_half_life: 5, ..Hyperparameters::development() };
    genesis.balances.insert(pair(100).hotkey(), 5_000_000_000);
    let neuron = |i: u8| GenesisNeuron { hotkey: pair(i).hotkey(), coldkey: pair(100).hotkey(), stake: u64::from(i) };
    genesis.neurons = vec![neuron(1), neuron(2)];
    let mut ledger = Ledger::new(&genesis).unwrap();
    for (i, call) in [
        (1, Call::SetCommitment { netuid: NETUID, fields: vec![vec![], vec![7; 128], vec![9; 300]] }),
        (2, Call::SetWeights { netuid: NETUID, dests: vec![0, 1], weights: vec![30, 60], version_key: 0 }),
    ] {
        let pair = pair(i);
        let (genesis, era, nonce) = (ledger.genesis(), ledger.era(), ledger.nonce(&pair.hotkey()));
        let (_, receipts) = ledger.step(0, &[convoke::chain::SignedCall::sign(&pair, &genesis, &era, nonce, call)]);
        assert!(
            matches!(receipts[0].verdict, convoke::chain::Verdict::Included { result: Ok(()), .. }),
            "{receipts:?}"
        );
    }
    ledger
}

#[test]
fn a_runtime_says_its_version_and_may_be_given_another() {
    let recorded = Runtime::recorded();
    assert_eq!((recorded.spec_version(), recorded.spec_name()), (365, "node-subtensor"));
    assert_eq!(recorded.metadata_version(), 16);
    let upgraded = recorded.with_spec_version(366);
    assert_eq!(upgraded.spec_version(), 366);
    assert_eq!(upgraded.version_bytes().len(), recorded.version_bytes().len());
    assert!(matches!(Runtime::decode(vec![1, 2, 3]), Err(WireError::Metadata { .. })));
    for length in [0, 5, 100, RECORDED.len() - 1] {
        assert!(Runtime::decode(RECORDED[..length].to_vec()).is_err(), "{length}");
    }
}

#[test]
fn the_state_of_a_ledger_is_found_under_subtensors_keys() {
    let ledger = ledger();
    for runtime in runtimes() {
        let events = [events::record(Some(1), events::outcome(&runtime, Ok(())))];
        let beacon = LocalBeacon::of_chain(&ledger.genesis());
        let of_block = OfBlock { parent_hash: [3; 32], beacon: beacon.beacon(), events: &events };
        let entries = entries(&runtime, &ledger, &of_block).unwrap();
        let metadata = runtime.metadata();
        let get = |entry: &str| {
            let key = schema::key(metadata, SUBTENSOR, entry, (NETUID,)).unwrap();
            entries.get(&key).unwrap_or_else(|| panic!("{entry} in {runtime:?}")).clone()
        };
        let hotkey = pair(2).hotkey();
        let decode = |entry: &str| schema::decode::<u64>(metadata, SUBTENSOR, entry, &get(entry)).unwrap();
        assert_eq!((decode("SubnetworkN"), decode("Tempo"), decode("WeightsSetRateLimit")), (2, 20, 10));
        assert_eq!(decode("Burn"), ledger.metagraph().burn);
        assert_eq!(get("ValidatorPermit"), vec![true, true].encode());
        assert_eq!(get("LastUpdate"), vec![0_u64, 2].encode());
        assert_eq!(get("Incentive"), vec![0_u16, 0].encode());
        let keyed = |pallet, entry, keys: Vec<Value>| &entries[&schema::key(metadata, pallet, entry, keys).unwrap()];
        let (netuid, uid) = (Value::u128(NETUID.into()), Value::u128(1));
        let account = Value::from_bytes(hotkey.0);
        assert_eq!(keyed(SUBTENSOR, "Keys", vec![netuid.clone(), uid.clone()])[..], hotkey.0);
        assert_eq!(*keyed(SUBTENSOR, "Uids", vec![netuid.clone(), account.clone()]), 1_u16.encode());
        assert_eq!(*keyed(SUBTENSOR, "TotalHotkeyAlpha", vec![account.clone(), netuid.clone()]), 2_u64.encode());
        let weights = keyed(SUBTENSOR, "Weights", vec![netuid.clone(), uid]);
        assert_eq!(*weights, vec![(0_u16, 32_768_u16), (1, 65_535)].encode());
        let nonce = keyed("System", "Account", vec![account]);
        assert_eq!(nonce[..4], 1_u32.to_le_bytes());
        assert_eq!(entries[&schema::schedule_key(schema::EPOCH_INDEX, NETUID)], 0_u64.encode());
        let committed = keyed("Commitments", "CommitmentOf", vec![netuid, Value::from_bytes(pair(1).hotkey().0)]);
        let registration: Registration = schema::decode(metadata, "Commitments", "CommitmentOf", committed).unwrap();
        assert_eq!(registration.block, 1);
        assert_eq!(registration.info.into_fields(), [vec![], vec![7; 128], vec![9; 300]]);
    }
}

#[test]
fn a_beacon_is_the_one_that_was_shown_and_quicknet_where_none_was() {
    let local = *LocalBeacon::of_chain(&BlockHash([7; 32])).beacon();
    for runtime in runtimes() {
        let metadata = runtime.metadata();
        let shown = schema::encode(metadata, DRAND, "BeaconConfig", &beacon::to_config(&local)).unwrap();
        let read: beacon::Config = schema::decode(metadata, DRAND, "BeaconConfig", &shown).unwrap();
        assert_eq!(read.into_beacon(), Some(local), "{runtime:?}");
        let unset: beacon::Config = schema::default(metadata, DRAND, "BeaconConfig").unwrap().unwrap();
        assert_eq!(unset.into_beacon(), Some(Beacon::quicknet()), "{runtime:?}");
        let timeless = beacon::to_config(&Beacon { period_ms: 0, ..local });
        let shown = schema::encode(metadata, DRAND, "BeaconConfig", &timeless).unwrap();
        let read: beacon::Config = schema::decode(metadata, DRAND, "BeaconConfig", &shown).unwrap();
        assert_eq!(read.into_beacon(), None);
    }
}

#[test]
fn every_event_and_error_that_the_ledger_has_is_encoded() {
    let ledger = ledger();
    let all = [
        convoke::chain::Event::NeuronRegistered { uid: convoke::terms::Uid(3), hotkey: pair(1).hotkey() },
        convoke::chain::Event::WeightsSet { uid: convoke::terms::Uid(3) },
        convoke::chain::Event::Commitment { who: pair(1).hotkey() },
        convoke::chain::Event::Funded { account: pair(1).hotkey(), amount: 1 << 40 },
    ];
    for runtime in runtimes() {
        let told: Vec<_> = all.iter().filter_map(|event| events::of_ledger(&runtime, NETUID, event)).collect();
        assert_eq!(told.len(), all.len(), "{runtime:?}");
        let errors = [
            convoke::chain::DispatchError::SettingWeightsTooFast,
            convoke::chain::DispatchError::AccountNotAllowedCommit,
            convoke::chain::DispatchError::BadOrigin,
            convoke::chain::DispatchError::RegistrationPriceLimitExceeded,
        ];
        let outcomes = errors.map(|error| events::outcome(&runtime, Err(error)));
        let records: Vec<_> = told.into_iter().chain(outcomes).map(|event| events::record(Some(2), event)).collect();
        let beacon = LocalBeacon::of_chain(&ledger.genesis());
        let of_block = OfBlock { parent_hash: [3; 32], beacon: beacon.beacon(), events: &records };
        let entries = entries(&runtime, &ledger, &of_block).unwrap();
        let key = schema::key(runtime.metadata(), "System", "Events", ()).unwrap();
        assert_eq!(entries[&key][0], 8 << 2);
    }
}

const GENESIS: BlockHash = BlockHash([4; 32]);
const BIRTH: BlockHash = BlockHash([5; 32]);

/// An extrinsic put together by hand from the description of the format: era 64 from block 70, nonce 9.
fn signed(runtime: &Runtime, signer: &HotkeyPair, pallet: &str, call: &str, args: Composite<()>) -> Vec<u8> {
    let metadata = runtime.metadata();
    let call = encode_call_data(pallet, call, &args, metadata, metadata.types()).unwrap();
    let (mut sent, mut signed) = (Vec::new(), Vec::new());
    for extension in metadata.extrinsic().transaction_extensions_by_version(0).unwrap() {
        match extension.identifier() {
            "CheckMortality" => {
                // Period 64 is 2^6, phase 70 mod 64.
                sent.extend_from_slice(&(5_u16 | 6 << 4).to_le_bytes());
                signed.extend_from_slice(&BIRTH.0);
            }
            "CheckNonce" => sent.extend(Compact(9_u32).encode()),
            "ChargeTransactionPayment" | "ChargeTransactionPaymentWrapper" => sent.extend(Compact(0_u32).encode()),
            "CheckSpecVersion" => signed.extend_from_slice(&runtime.spec_version().to_le_bytes()),
            "CheckTxVersion" => signed.extend_from_slice(&runtime.transaction_version().to_le_bytes()),
            "CheckGenesis" => signed.extend_from_slice(&GENESIS.0),
            "CheckMetadataHash" => {
                sent.push(0);
                signed.push(0);
            }
            _ => {}
        }
    }
    let payload = [&call[..], &sent, &signed].concat();
    let signature = if payload.len() > 256 { signer.sign(&blake2_256(&payload)) } else { signer.sign(&payload) };
    let body = [&[0x84, 0][..], &signer.hotkey().0, &[1], &signature, &sent, &call].concat();
    [Compact(u32::try_from(body.len()).unwrap()).encode(), body].concat()
}

fn commit(runtime: &Runtime, fields: &[Vec<u8>]) -> Vec<u8> {
    let args = Composite::named([("netuid", Value::u128(NETUID.into())), ("info", to_info(fields))]);
    signed(runtime, &pair(1), "Commitments", "set_commitment", args)
}

fn verify(runtime: &Runtime, bytes: &[u8], head: u64) -> Result<convoke::chain::VerifiedCall, Invalid> {
    let hash_of = |block| (block == 70).then_some(BIRTH);
    extrinsic::open(runtime.metadata(), bytes).unwrap().verify(runtime, &GENESIS, head, hash_of)
}

#[test]
fn a_signed_call_says_who_asks_for_what_and_until_when() {
    for runtime in runtimes() {
        let fields = vec![vec![], vec![1; 5], vec![2; 128], vec![3; 129]];
        let bytes = commit(&runtime, &fields);
        let call = verify(&runtime, &bytes, 70).unwrap();
        assert_eq!(call.call, Call::SetCommitment { netuid: NETUID, fields });
        assert_eq!((call.signer, call.nonce, call.birth, call.period), (pair(1).hotkey(), 9, 70, 64));
        assert_eq!(call.hash, blake2_256(&bytes));
        // As seen from the last block of its era, and from the first after it.
        assert!(verify(&runtime, &bytes, 133).is_ok());
        assert_eq!(verify(&runtime, &bytes, 134), Err(Invalid::AncientBirthBlock));
        let number = |value: u64| Value::u128(value.into());
        let numbers = |values: &[u64]| Value::unnamed_composite(values.iter().map(|&value| number(value)));
        let weights = Composite::named([
            ("netuid", number(7)),
            ("dests", numbers(&[0, 3])),
            ("weights", numbers(&[5, 65_535])),
            ("version_key", number(8)),
        ]);
        let bytes = signed(&runtime, &pair(2), SUBTENSOR, "set_weights", weights);
        let call = Call::SetWeights { netuid: 7, dests: vec![0, 3], weights: vec![5, 65_535], version_key: 8 };
        assert_eq!(verify(&runtime, &bytes, 71).unwrap().call, call);
        let hotkey = Value::from_bytes(pair(3).hotkey().0);
        let register = Composite::named([("netuid", number(7)), ("hotkey", hotkey.clone())]);
        let bytes = signed(&runtime, &pair(2), SUBTENSOR, "burned_register", register);
        let call = Call::BurnedRegister { netuid: 7, hotkey: pair(3).hotkey() };
        assert_eq!(verify(&runtime, &bytes, 71).unwrap().call, call);
        let add = Composite::named([("hotkey", hotkey), ("netuid", number(7)), ("amount_staked", number(1 << 40))]);
        let bytes = signed(&runtime, &pair(2), SUBTENSOR, "add_stake", add);
        let call = Call::AddStake { hotkey: pair(3).hotkey(), netuid: 7, amount: 1 << 40 };
        assert_eq!(verify(&runtime, &bytes, 71).unwrap().call, call);
        let remark = Value::from_bytes(faucet_remark(7, &pair(3).hotkey(), 99));
        let bytes = signed(&runtime, &pair(2), "System", "remark", Composite::named([("remark", remark)]));
        let call = Call::DevRegister { netuid: 7, hotkey: pair(3).hotkey(), stake: 99 };
        assert_eq!(verify(&runtime, &bytes, 71).unwrap().call, call);
        let remark = Value::from_bytes(funds_remark(&pair(4).hotkey(), 1 << 40));
        let bytes = signed(&runtime, &pair(2), "System", "remark", Composite::named([("remark", remark)]));
        let call = Call::DevFund { account: pair(4).hotkey(), balance: 1 << 40 };
        assert_eq!(verify(&runtime, &bytes, 71).unwrap().call, call);
    }
}

#[test]
fn a_signature_for_another_chain_fork_or_runtime_is_a_bad_proof() {
    let runtime = Runtime::recorded();
    let bytes = commit(&runtime, &[vec![1]]);
    let open = || extrinsic::open(runtime.metadata(), &bytes).unwrap();
    let birth = |_| Some(BIRTH);
    assert!(open().verify(&runtime, &GENESIS, 70, birth).is_ok());
    let bad = Some(Invalid::BadProof);
    assert_eq!(open().verify(&runtime, &BIRTH, 70, birth).err(), bad);
    assert_eq!(open().verify(&runtime, &GENESIS, 70, |_| Some(GENESIS)).err(), bad);
    assert_eq!(open().verify(&runtime.with_spec_version(366), &GENESIS, 70, birth).err(), bad);
    let mut changed = bytes.clone();
    *changed.last_mut().unwrap() ^= 1;
    assert_eq!(extrinsic::open(runtime.metadata(), &changed).unwrap().verify(&runtime, &GENESIS, 70, birth).err(), bad);
}

#[test]
fn calls_that_the_ledger_has_not_and_extrinsics_of_other_kinds_are_refused() {
    let runtime = Runtime::recorded();
    let refused = |bytes: &[u8]| extrinsic::open(runtime.metadata(), bytes).err().expect("it is refused").to_string();
    let remark = |bytes: &[u8]| Composite::named([("remark", Value::from_bytes(bytes))]);
    assert!(refused(&signed(&runtime, &pair(1), "System", "remark", remark(b"hello"))).contains("no remarks"));
    let all = Composite::named([("calls", Value::unnamed_composite([]))]);
    assert!(refused(&signed(&runtime, &pair(1), "Utility", "batch", all)).contains("no call `Utility.batch`"));
    assert!(refused(&extrinsic::timestamp(&runtime, 5).unwrap()).contains("no signed extrinsic"));
    assert!(refused(&vec![0; EXTRINSIC_BYTES_MAX + 1]).contains("more than"));
    let long = commit(&runtime, &[vec![0; 513]]);
    assert!(refused(&long).contains("longer than"), "{}", refused(&long));
    let mut trailing = commit(&runtime, &[vec![1]]);
    trailing.push(0);
    assert!(!refused(&trailing).is_empty());
}

proptest! {
    #[test]
    fn bytes_from_a_stranger_are_refused_and_never_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        cut in 0_usize..300,
        at in 0_usize..300,
    ) {
        let runtime = &*RUNTIME;
        drop(extrinsic::open(runtime.metadata(), &bytes));
        let body = [&[0x84, 0][..], &[1; 32], &[1], &bytes].concat();
        let framed = [Compact(u32::try_from(body.len()).unwrap()).encode(), body].concat();
        drop(extrinsic::open(runtime.metadata(), &framed));
        let mut known = commit(runtime, &[vec![1; 40], vec![2; 200]]);
        let at = at % known.len();
        known[at] ^= bytes.first().copied().unwrap_or(1) | 1;
        if let Ok(opened) = extrinsic::open(runtime.metadata(), &known) {
            let verified = opened.verify(runtime, &GENESIS, 70, |_| Some(BIRTH));
            prop_assert!(verified.is_err(), "a changed byte at {} went unseen", at);
        }
        known.truncate(cut % known.len());
        prop_assert!(extrinsic::open(runtime.metadata(), &known).is_err());
    }

    #[test]
    fn fields_arrive_as_they_were_sent(lengths in prop::collection::vec(0_usize..513, 0..4)) {
        let runtime = &*RUNTIME;
        let fields: Vec<Vec<u8>> = lengths.iter().map(|&length| vec![3; length]).collect();
        let opened = extrinsic::open(runtime.metadata(), &commit(runtime, &fields)).unwrap();
        let call = opened.verify(runtime, &GENESIS, 70, |_| Some(BIRTH)).unwrap().call;
        prop_assert_eq!(call, Call::SetCommitment { netuid: NETUID, fields });
    }
}

static RUNTIME: std::sync::LazyLock<Runtime> = std::sync::LazyLock::new(Runtime::recorded);

#[test]
fn hotkeys_of_a_state_are_told_apart() {
    // Two accounts must not share a key, whatever the entry's hashers are.
    let runtime = Runtime::recorded();
    let mut keys = BTreeMap::new();
    for i in 0..50 {
        let hotkey = Hotkey([i; 32]);
        let key = schema::key(runtime.metadata(), SUBTENSOR, "Uids", (NETUID, hotkey.0)).unwrap();
        assert!(key.ends_with(&hotkey.0));
        assert_eq!(keys.insert(key, i), None);
    }
}
