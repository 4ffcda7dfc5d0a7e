//! The claims of `events`.

use convoke::terms::{BlockHash, Digest, Hotkey, ManifestHash, PayloadHash, RunId, Uid, Weight};
use tempfile::TempDir;

use super::*;

fn file() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    (dir, path)
}

fn rounds(path: &Path) -> Vec<u64> {
    read(path).unwrap().iter().filter_map(|line| line.round).map(|round| round.0).collect()
}

/// One of each kind, so that a kind that cannot be written and read is found.
fn one_of_each() -> Vec<Event> {
    let text = || "why".to_owned();
    let (digest, hotkey, contributors) = (Digest([7; 32]), Hotkey([9; 32]), vec![Uid(1), Uid(2)]);
    vec![
        Event::NodeStarted {
            version: text(),
            run_id: RunId([1; 32]),
            role: "both".to_owned(),
            hotkey,
            resumed_at: Some(Round(3)),
        },
        Event::RoundStarted,
        Event::PhaseStarted { phase: text() },
        Event::InnerStepsDone { steps: 30, tokens: 30_720, loss: 2.5, seconds: 1.25 },
        Event::Sealed {
            payload: PayloadHash([2; 32]),
            bytes: 4_500,
            ratio: 201.5,
            inner_steps: 30,
            sealed_at: Block(17),
        },
        Event::SealFailed { reason: text() },
        Event::Gathered { received: 2, missing: 1 },
        Event::Rejected { uid: Some(Uid(4)), hotkey, reason: text() },
        Event::Rejected { uid: None, hotkey, reason: text() },
        Event::Manifest { manifest: ManifestHash([3; 32]), contributors: contributors.clone() },
        Event::OuterStep { digest, contributors, heldout_loss: Some(3.5), seed: BlockHash([4; 32]), seconds: 0.5 },
        Event::NullRound { reason: text() },
        Event::Evaluated { uid: Uid(1), score: 0.5, assigned_improvement: 0.25, unassigned_improvement: -0.125 },
        Event::Rated { records: digest },
        Event::WeightsSet { weights: vec![(Uid(1), Weight(65_535)), (Uid(2), Weight(3))], set_at: Block(20) },
        Event::ActorRestarted { actor: text(), reason: text(), restarts: 2 },
        Event::ActorHung { actor: text(), deadline_seconds: 1.5 },
        Event::BudgetSpent { actor: text(), restarts: 5 },
        Event::FaultInjected { actor: text(), phase: text(), fault: text() },
        Event::DigestMismatch { own: digest, agreed: Digest([8; 32]) },
        Event::ResyncStarted { reason: text() },
        Event::ResyncDone { digest, seconds: 2.0 },
        Event::FinalityLagging { lag_blocks: 9 },
        Event::EventsLost { count: 3 },
        Event::Stopping { reason: text() },
        Event::Stopped { exit_code: 70 },
    ]
}

#[test]
fn what_is_recorded_is_read_back() {
    let (_dir, path) = file();
    let events = Events::open(&path, "a").unwrap();
    events.record(None, Event::RoundStarted);
    events.set_block(Block(41));
    for event in one_of_each() {
        events.record(Round(5), event);
    }
    events.flush();
    let lines = read(&path).unwrap();
    assert_eq!((lines[0].block, lines[0].round), (None, None));
    assert!(lines[1..].iter().all(|line| (line.block, line.round) == (Some(Block(41)), Some(Round(5)))));
    assert!(lines.iter().all(|line| line.node == "a" && line.at_ms > 1_600_000_000_000));
    assert_eq!(lines.into_iter().skip(1).map(|line| line.event).collect::<Vec<_>>(), one_of_each());
}

#[test]
fn a_line_is_one_flat_object_named_by_its_event() {
    let line = Line {
        at_ms: 1,
        node: "a".to_owned(),
        block: Some(Block(2)),
        round: Some(Round(3)),
        event: Event::Gathered { received: 4, missing: 5 },
    };
    let text = r#"{"at_ms":1,"node":"a","block":2,"round":3,"event":"gathered","received":4,"missing":5}"#;
    assert_eq!(serde_json::to_string(&line).unwrap(), text);
}

#[test]
fn a_loss_that_is_not_a_number_can_be_written_and_read() {
    let (_dir, path) = file();
    let events = Events::open(&path, "a").unwrap();
    events.record(Round(1), Event::InnerStepsDone { steps: 1, tokens: 1, loss: f64::NAN, seconds: 1.0 });
    events.flush();
    assert!(matches!(read(&path).unwrap()[0].event, Event::InnerStepsDone { loss, .. } if loss.is_nan()));
}

#[test]
fn a_restart_appends_and_cuts_off_a_torn_line() {
    let (_dir, path) = file();
    let record = |round| {
        let events = Events::open(&path, "a").unwrap();
        events.record(Round(round), Event::RoundStarted);
        events.flush();
    };
    record(1);
    let whole = fs::metadata(&path).unwrap().len();
    record(2);
    for cut in whole + 1..2 * whole {
        fs::File::options().write(true).open(&path).unwrap().set_len(cut).unwrap();
        assert_eq!(rounds(&path), [1], "cut at {cut}");
        record(2);
        assert_eq!(rounds(&path), [1, 2], "cut at {cut}");
    }
}

#[test]
fn a_torn_line_longer_than_one_read_is_cut_off_too() {
    let (_dir, path) = file();
    fs::write(&path, "x".repeat(10_000)).unwrap();
    let events = Events::open(&path, "a").unwrap();
    events.record(Round(1), Event::SealFailed { reason: "y".repeat(9_000) });
    events.flush();
    assert_eq!(rounds(&path), [1]);
    assert_eq!(whole_lines(&mut File::open(&path).unwrap()).unwrap(), fs::metadata(&path).unwrap().len());
}

#[test]
fn a_whole_line_that_is_no_event_is_named() {
    let (_dir, path) = file();
    fs::write(&path, "{}\n").unwrap();
    assert!(read(&path).unwrap_err().to_string().contains("line 1: "));
}

#[test]
fn without_room_nothing_blocks_and_the_gap_is_a_line() {
    let (_dir, path) = file();
    let shared = Arc::new(Shared { node: "a".to_owned(), block: AtomicU64::new(NO_BLOCK), lost: AtomicU64::new(0) });
    let (queue, messages) = sync_channel(2);
    let events = Events { shared: shared.clone(), lines: Lines::Writer(queue) };
    for round in 0..5 {
        events.record(Round(round), Event::RoundStarted);
    }
    assert_eq!(events.lost(), 3);
    let output = Output::open(path.clone(), FILE_BYTES_MAX).unwrap();
    drop(events);
    Writer { shared, output, lost_written: 0 }.run(&messages);
    assert_eq!(rounds(&path), [0, 1]);
    assert!(read(&path).unwrap().iter().any(|line| line.event == Event::EventsLost { count: 3 }));
}

#[test]
fn a_full_file_is_put_aside_once() {
    let (dir, path) = file();
    let events = Events::open_with(&path, "a", 1_000).unwrap();
    for round in 0..100 {
        events.record(Round(round), Event::RoundStarted);
    }
    events.flush();
    let (aside, current) = (rounds(&dir.path().join("events.1.jsonl")), rounds(&path));
    assert_eq!(current.last(), Some(&99));
    assert_eq!(aside.last().map(|round| round + 1), current.first().copied());
    assert!(fs::metadata(&path).unwrap().len() <= 1_000);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn a_file_that_cannot_be_opened_is_an_error() {
    let (dir, _) = file();
    assert!(Events::open(dir.path(), "a").is_err());
}
