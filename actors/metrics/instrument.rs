//! What a metric is made of: its declaration, and handles that write to one node's own recorder.
//!
//! The `metrics` crate's macros write to a recorder of the whole process. Several nodes live in one process in our
//! tests, so every handle here is registered on the recorder of its node. Handles are made once and kept: a hot path
//! pays one atomic, not a hash of a name.
//!
//! Label values are `&'static str`, or a uid of the subnet: text from the network can never become a series.

use std::sync::{Arc, Mutex, PoisonError};

use ::metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, SharedString, Unit};
use convoke::terms::Uid;
use dashmap::DashMap;
use metrics_exporter_prometheus::PrometheusRecorder;

/// What our recorder makes of a metric's module and level: nothing.
const METADATA: Metadata<'static> = Metadata::new("convoke", Level::INFO, None);

/// How a metric counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts observations in buckets.
    Histogram,
}

impl Kind {
    /// The word of the exposition's `# TYPE` line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Where the values of a label come from, and so what bounds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    /// These.
    Fixed(&'static [&'static str]),
    /// The supervisor's children.
    Actors,
    /// Why a child was restarted.
    RestartReasons,
    /// The phases of a round.
    Phases,
    /// Why a payload was rejected.
    RejectReasons,
    /// Why a peer's request was refused.
    RefuseReasons,
    /// The kinds of calls to the chain.
    CallKinds,
    /// The subnet's slots: known only once somebody holds them, so not in the first exposition.
    Uids,
    /// Facts of this node, set once at its start.
    Once,
}

/// The words that label values are taken from, each list from its one owner, so that every series is there from the
/// first scrape on and `rate()` sees the step from 0 to 1.
#[derive(Debug, Clone, Copy)]
pub struct Vocabulary {
    /// Names of the supervisor's children.
    pub actors: &'static [&'static str],
    /// Why a child was restarted.
    pub restart_reasons: &'static [&'static str],
    /// The phases of a round.
    pub phases: &'static [&'static str],
    /// Why a payload was rejected.
    pub reject_reasons: &'static [&'static str],
    /// Why a peer's request was refused.
    pub refuse_reasons: &'static [&'static str],
    /// The kinds of calls to the chain.
    pub call_kinds: &'static [&'static str],
}

impl Vocabulary {
    /// The values a label has from the start.
    fn of(&self, values: Values) -> &'static [&'static str] {
        match values {
            Values::Fixed(fixed) => fixed,
            Values::Actors => self.actors,
            Values::RestartReasons => self.restart_reasons,
            Values::Phases => self.phases,
            Values::RejectReasons => self.reject_reasons,
            Values::RefuseReasons => self.refuse_reasons,
            Values::CallKinds => self.call_kinds,
            Values::Uids | Values::Once => &[],
        }
    }
}

/// One metric's declaration: a row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Declared {
    /// Whose metric it is: a child of the supervisor, or a part of the node.
    pub owner: &'static str,
    /// Its name in the exposition, with its unit.
    pub name: &'static str,
    /// How it counts.
    pub kind: Kind,
    /// What it counts.
    pub unit: Unit,
    /// What it means, for an operator.
    pub help: &'static str,
    /// Its labels, and where their values come from.
    pub labels: &'static [(&'static str, Values)],
    /// Upper bounds of a histogram's buckets; empty for the others.
    pub buckets: &'static [f64],
}

impl Declared {
    /// Whether its series are known before anything happened.
    #[must_use]
    pub fn is_known_from_the_start(&self) -> bool {
        !self.labels.iter().any(|(_, values)| *values == Values::Uids)
    }

    /// Tells the recorder what the metric means.
    pub(super) fn describe(&self, recorder: &PrometheusRecorder) {
        let (name, help) = (KeyName::from_const_str(self.name), SharedString::const_str(self.help.trim_ascii()));
        match self.kind {
            Kind::Counter => recorder.describe_counter(name, Some(self.unit), help),
            Kind::Gauge => recorder.describe_gauge(name, Some(self.unit), help),
            Kind::Histogram => recorder.describe_histogram(name, Some(self.unit), help),
        }
    }

    fn key(&self, values: &[&str]) -> Key {
        let labels: Vec<_> =
            self.labels.iter().zip(values).map(|((name, _), value)| Label::new(*name, (*value).to_owned())).collect();
        Key::from_parts(self.name, labels)
    }
}

/// What a handle is made from.
pub(super) struct Maker<'a> {
    pub recorder: &'a Arc<PrometheusRecorder>,
    pub vocabulary: &'a Vocabulary,
}

/// A handle that counts: [`Counter`], [`Gauge`], [`Histogram`].
pub trait Handle: Clone {
    /// How it counts.
    const KIND: Kind;
    /// Registers one series, which is in the exposition from then on.
    fn register(recorder: &PrometheusRecorder, key: &Key) -> Self;
}

macro_rules! handle {
    ($type:ty, $kind:expr, $register:ident) => {
        impl Handle for $type {
            const KIND: Kind = $kind;
            fn register(recorder: &PrometheusRecorder, key: &Key) -> Self {
                recorder.$register(key, &METADATA)
            }
        }
    };
}
handle!(Counter, Kind::Counter, register_counter);
handle!(Gauge, Kind::Gauge, register_gauge);
handle!(Histogram, Kind::Histogram, register_histogram);

/// A field of a metrics struct: a handle, or a family of them.
pub(super) trait Instrument {
    const KIND: Kind;
    fn make(maker: &Maker<'_>, declared: Declared) -> Self;
}

impl<H: Handle> Instrument for H {
    const KIND: Kind = <H as Handle>::KIND;
    fn make(maker: &Maker<'_>, declared: Declared) -> Self {
        H::register(maker.recorder, &declared.key(&[]))
    }
}

/// A metric with `N` labels whose values are words of the program.
pub struct By<H, const N: usize> {
    declared: Declared,
    recorder: Arc<PrometheusRecorder>,
    series: DashMap<[&'static str; N], H>,
    /// Of a state as a gauge, the one that is set.
    state: Mutex<Option<&'static str>>,
}

impl<H: Handle, const N: usize> By<H, N> {
    /// The series of these label values, in the order of the declaration.
    pub fn with(&self, values: [&'static str; N]) -> H {
        if let Some(handle) = self.series.get(&values) {
            return handle.clone();
        }
        let register = || H::register(&self.recorder, &self.declared.key(&values));
        self.series.entry(values).or_insert_with(register).clone()
    }
}

impl By<Gauge, 1> {
    /// Sets this value's series to 1 and every other to 0: a state as a gauge.
    pub fn only(&self, value: &'static str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = state.replace(value).filter(|before| *before != value) {
            self.with([before]).set(0.0);
        }
        self.with([value]).set(1.0);
    }
}

impl<H: Handle, const N: usize> Instrument for By<H, N> {
    const KIND: Kind = H::KIND;
    fn make(maker: &Maker<'_>, declared: Declared) -> Self {
        assert_eq!(declared.labels.len(), N, "{} declares as many labels as its type", declared.name);
        let family =
            Self { declared, recorder: maker.recorder.clone(), series: DashMap::new(), state: Mutex::default() };
        let words = declared.labels.iter().map(|(_, values)| maker.vocabulary.of(*values));
        for values in product(words) {
            family.with(values.try_into().expect("one word a label"));
        }
        family
    }
}

/// Every combination of one word from each list.
fn product(lists: impl Iterator<Item = &'static [&'static str]>) -> Vec<Vec<&'static str>> {
    lists.fold(vec![vec![]], |rows, words| {
        rows.iter().flat_map(|row| words.iter().map(|word| [row.as_slice(), &[*word]].concat())).collect()
    })
}

/// A metric by uid: at most as many series as the subnet has slots.
pub struct ByUid<H> {
    declared: Declared,
    recorder: Arc<PrometheusRecorder>,
    series: DashMap<Uid, H>,
}

impl<H: Handle> ByUid<H> {
    /// The series of this uid.
    pub fn with(&self, uid: Uid) -> H {
        let register = || H::register(&self.recorder, &self.declared.key(&[&uid.to_string()]));
        self.series.entry(uid).or_insert_with(register).clone()
    }
}

impl<H: Handle> Instrument for ByUid<H> {
    const KIND: Kind = H::KIND;
    fn make(maker: &Maker<'_>, declared: Declared) -> Self {
        Self { declared, recorder: maker.recorder.clone(), series: DashMap::new() }
    }
}

/// A gauge that is always 1 and carries facts as labels, set once.
pub struct Facts {
    declared: Declared,
    recorder: Arc<PrometheusRecorder>,
}

impl Facts {
    /// Publishes the facts, in the order of the declaration. For what does not change while the node runs.
    ///
    /// # Panics
    /// If there are not as many facts as labels.
    pub fn publish(&self, facts: &[&str]) {
        assert_eq!(facts.len(), self.declared.labels.len(), "one fact a label of {}", self.declared.name);
        Gauge::register(&self.recorder, &self.declared.key(facts)).set(1.0);
    }
}

impl Instrument for Facts {
    const KIND: Kind = Kind::Gauge;
    fn make(maker: &Maker<'_>, declared: Declared) -> Self {
        Self { declared, recorder: maker.recorder.clone() }
    }
}
