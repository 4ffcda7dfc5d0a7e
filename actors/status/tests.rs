//! The claims of `status`.

use super::*;

const HOTKEY: Hotkey = Hotkey([5; 32]);
const FRESHNESS: Freshness =
    Freshness { head_age_max: Duration::from_secs(30), round_age_max: Duration::from_secs(300) };

fn board() -> StatusBoard {
    let identity = Identity {
        node: "a".to_owned(),
        version: "1.2.3".to_owned(),
        role: "both".to_owned(),
        run_id: RunId([1; 32]),
        hotkey: HOTKEY,
    };
    StatusBoard::new(identity, FRESHNESS)
}

fn remembered(board: &StatusBoard) -> Vec<u64> {
    board.snapshot().rounds.iter().map(|status| status.round.0).collect()
}

#[test]
fn a_round_is_told_from_start_to_outer_step() {
    let board = board();
    let (round, digest) = (Round(3), Digest([2; 32]));
    board.round_started(round, 30);
    board.phase("training");
    board.inner_steps(round, 30, 2.5);
    board.sealed(round, SealReport { payload: PayloadHash([4; 32]), bytes: 1000, ratio: 200.5 });
    board.rejected(round, Rejected { uid: Some(Uid(9)), hotkey: HOTKEY, reason: "late".to_owned() });
    board.spent(round, Duration::from_millis(1500), Duration::from_millis(250));
    board.spent(round, Duration::from_millis(500), Duration::ZERO);
    board.outer_step(round, digest, &[Uid(0), Uid(2)]);
    board.heldout(round, 3.25);
    let status = board.snapshot();
    assert_eq!((status.round, status.phase.as_str(), status.rounds_completed), (Some(round), "training", 1));
    let expected = RoundStatus {
        round,
        outcome: Outcome::OuterStep,
        null_reason: None,
        digest: Some(digest),
        inner_steps: 30,
        train_loss: Some(2.5),
        heldout_loss: Some(3.25),
        contributors: vec![Uid(0), Uid(2)],
        rejected: vec![Rejected { uid: Some(Uid(9)), hotkey: HOTKEY, reason: "late".to_owned() }],
        payload: Some(PayloadHash([4; 32])),
        payload_bytes: Some(1000),
        payload_ratio: Some(200.5),
        computing_seconds: 2.0,
        communicating_seconds: 0.25,
    };
    assert_eq!(status.rounds, [expected]);
}

#[test]
fn the_report_survives_json() {
    let board = board();
    board.head(Block(10), Block(8));
    board.slot(Some(Uid(3)));
    board.null_round(Round(1), "no manifest");
    board.scored(Uid(2), HOTKEY, 0.5);
    board.rated(Uid(2), RatingStatus { mu: 25.0, sigma: 7.0, ordinal: 4.0 });
    board.weights_set(&[(Uid(2), Weight(65_535))]);
    board.actor_up("gauntlet");
    board.actor_restarted("gauntlet", "panic");
    let status = board.snapshot();
    let text = serde_json::to_string(&status).unwrap();
    assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status);
    assert!(text.contains(r#""peers":{"2":{"hotkey":"#), "{text}");
}

#[test]
fn the_board_remembers_the_last_64_rounds_in_order() {
    let board = board();
    for round in (0..200).rev().chain(0..200) {
        board.inner_steps(Round(round), 1, f64::NAN);
    }
    assert_eq!(remembered(&board), (136..200).collect::<Vec<_>>());
    board.heldout(Round(5), 1.0);
    board.heldout(Round(150), 1.0);
    assert_eq!(remembered(&board), (136..200).collect::<Vec<_>>());
    let status = board.snapshot();
    assert_eq!(status.rounds[14].heldout_loss, Some(1.0));
    assert_eq!(status.rounds[0].train_loss, None);
}

#[test]
fn a_flood_of_rejections_is_cut() {
    let board = board();
    for uid in 0..1000 {
        board.rejected(Round(1), Rejected { uid: Some(Uid(uid)), hotkey: HOTKEY, reason: "size".to_owned() });
    }
    assert_eq!(board.snapshot().rounds[0].rejected.len(), REJECTED_MAX);
}

#[test]
fn a_slot_that_changes_hands_starts_without_a_rating() {
    let board = board();
    board.scored(Uid(1), HOTKEY, 0.5);
    board.rated(Uid(1), RatingStatus { mu: 25.0, sigma: 7.0, ordinal: 4.0 });
    board.scored(Uid(1), HOTKEY, 0.75);
    assert!(board.snapshot().peers[&Uid(1)].rating.is_some());
    board.scored(Uid(1), Hotkey([6; 32]), 0.25);
    assert!(board.snapshot().peers[&Uid(1)].rating.is_none());
}

#[test]
fn a_peer_without_a_weight_in_the_last_submission_has_none() {
    let board = board();
    board.weights_set(&[(Uid(1), Weight(5)), (Uid(2), Weight(6))]);
    board.weights_set(&[(Uid(2), Weight(7))]);
    let peers = board.snapshot().peers;
    assert_eq!((peers[&Uid(1)].weight, peers[&Uid(2)].weight), (None, Some(Weight(7))));
}

#[test]
fn a_node_is_ready_once_it_follows_the_chain_and_holds_theta_and_rounds_end() {
    let board = board();
    let now = Instant::now();
    let later = |seconds| now + Duration::from_secs(seconds);
    let missing = |at| board.readiness_at(at).missing;
    assert_eq!(missing(now), ["no block of the chain seen yet", "the agreed θ is not held"]);
    board.head(Block(1), Block(0));
    assert_eq!(missing(later(1)), ["the agreed θ is not held"]);
    board.theta_held(true);
    assert!(board.readiness_at(later(1)).ready);
    assert_eq!(missing(later(60)), ["no new block for 30 s"]);
    assert_eq!(missing(later(600)), ["no new block for 30 s", "no round ended for 300 s"]);
    board.theta_held(false);
    assert_eq!(missing(later(1)), ["the agreed θ is not held"]);
}

#[test]
fn a_restart_leaves_the_node_healthy_and_a_spent_budget_does_not() {
    let board = board();
    board.actor_up("compressor");
    board.actor_down("compressor");
    board.actor_restarted("compressor", "panic");
    assert!(board.health().healthy);
    let actor = &board.snapshot().actors["compressor"];
    assert_eq!((actor.healthy, actor.restarts, actor.last_restart.as_deref()), (false, 1, Some("panic")));
    board.gave_up("restart budget of compressor spent");
    assert_eq!(board.health().reason.as_deref(), Some("restart budget of compressor spent"));
    assert!(!board.readiness().ready);
}
