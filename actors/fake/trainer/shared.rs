//! Many hotkeys, one machine: whoever of them trains first in a round has trained for all.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use convoke::terms::Round;

use super::habit::as_large_as;
use super::twist::{Twist, twisted};
use crate::fake::chance::Chance;
use crate::gpu_worker::{Trained, Trainers};
use crate::pages::Pages;

/// Rounds whose work is kept.
const ROUNDS_KEPT: usize = 4;
/// The least and the most that a hotkey adds to a value or takes of it, of its size: some are careless, and some differ by more than
/// copies are known by.
const OWN_SHARE: (f64, f64) = (0.02, 2.0);

/// What the one machine has made.
#[derive(Default)]
pub struct Machine(Mutex<BTreeMap<Round, Arc<Pages>>>);

impl Machine {
    /// The trainers of one of its hotkeys.
    #[must_use]
    pub fn trainers(self: &Arc<Self>, chance: Chance, trainers: Arc<dyn Trainers>) -> Arc<dyn Trainers> {
        let (least, most) = OWN_SHARE;
        let own_share = (least + (most - least) * chance.share("own share", &[])) as f32;
        twisted(trainers, Arc::new(OneOfMany { machine: Arc::clone(self), chance, own_share }))
    }

    fn work(&self, round: Round, own: &Arc<Pages>) -> Arc<Pages> {
        let mut rounds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let work = Arc::clone(rounds.entry(round).or_insert_with(|| Arc::clone(own)));
        while rounds.len() > ROUNDS_KEPT {
            rounds.pop_first();
        }
        work
    }
}

struct OneOfMany {
    machine: Arc<Machine>,
    chance: Chance,
    own_share: f32,
}

impl Twist for OneOfMany {
    fn trained(&self, round: Round, trained: Trained) -> Trained {
        let work = self.machine.work(round, &trained.delta);
        let mut delta = Pages::from(&**work);
        for (at, value) in delta.iter_mut().enumerate() {
            *value *= 1.0 + self.own_share * (2.0 * self.chance.share("own", &[round.0, at as u64]) as f32 - 1.0);
        }
        Trained { delta: Arc::new(as_large_as(&work, delta)), ..trained }
    }
}
