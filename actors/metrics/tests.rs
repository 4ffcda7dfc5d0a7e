//! The claims of `metrics`: a complete exposition from the start, one registry a node, real histograms.

use std::collections::BTreeSet;

use convoke::terms::Uid;

use super::*;

const VOCABULARY: Vocabulary = Vocabulary {
    actors: &["gpu_worker", "compressor"],
    restart_reasons: &["panic", "hung"],
    phases: &["training", "gathering"],
    reject_reasons: &["late", "signature"],
    refuse_reasons: &["sealed"],
    call_kinds: &["commit", "weights"],
};

fn metrics(node: &str) -> Arc<Metrics> {
    let facts = NodeFacts {
        node: node.to_owned(),
        version: "1.2.3".to_owned(),
        role: "both".to_owned(),
        run_id: "ab".to_owned(),
        quantiser: "two-bit".to_owned(),
    };
    Metrics::new(&facts, &VOCABULARY)
}

fn line<'a>(exposition: &'a str, start: &str) -> &'a str {
    exposition.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("no line starts with {start}"))
}

#[test]
fn every_metric_is_in_the_first_exposition_with_its_kind_and_help() {
    let exposition = metrics("a").render();
    for metric in declared().filter(|metric| metric.is_known_from_the_start()) {
        let name = metric.name;
        assert_eq!(line(&exposition, &format!("# TYPE {name} ")), format!("# TYPE {name} {}", metric.kind.word()));
        assert_eq!(line(&exposition, &format!("# HELP {name} ")), format!("# HELP {name} {}", metric.help.trim()));
        let series = if metric.kind == Kind::Histogram { format!("{name}_bucket{{") } else { format!("{name}{{") };
        assert!(line(&exposition, &series).contains("node=\"a\""), "{name}");
    }
}

#[test]
fn nothing_is_exported_that_the_table_does_not_declare() {
    let metrics = metrics("a");
    metrics.gauntlet.record_peer(Uid(7), 0.5, 1.0);
    metrics.gauntlet.weight.with(Uid(7)).set(0.25);
    let exposition = metrics.render();
    let exported: BTreeSet<_> =
        exposition.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert_eq!(exported, declared().map(|metric| metric.name).collect());
}

#[test]
fn names_are_unique_carry_our_prefix_and_counters_end_in_total() {
    let mut names = BTreeSet::new();
    for metric in declared() {
        assert!(names.insert(metric.name), "{} twice", metric.name);
        assert!(metric.name.starts_with("convoke_"), "{}", metric.name);
        assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
        assert_eq!(metric.buckets.is_empty(), metric.kind != Kind::Histogram, "{}", metric.name);
        assert!(metric.buckets.is_sorted(), "{}", metric.name);
        assert!(metric.help.trim().ends_with('.') || metric.help.contains(';'), "{}: {}", metric.name, metric.help);
    }
}

#[test]
fn two_nodes_of_one_process_count_apart() {
    let (one, two) = (metrics("one"), metrics("two"));
    one.gpu_worker.tokens.increment(3);
    two.gpu_worker.tokens.increment(5);
    assert_eq!(line(&one.render(), "convoke_tokens_total{"), "convoke_tokens_total{node=\"one\"} 3");
    assert_eq!(line(&two.render(), "convoke_tokens_total{"), "convoke_tokens_total{node=\"two\"} 5");
}

#[test]
fn labels_combine_and_an_unforeseen_word_gets_its_own_series() {
    let metrics = metrics("a");
    metrics.supervisor.restarts.with(["compressor", "panic"]).increment(2);
    metrics.gauntlet.rejected.with(["surprise"]).increment(1);
    let exposition = metrics.render();
    let series = |start: &str| exposition.lines().filter(|line| line.starts_with(start)).collect::<BTreeSet<_>>();
    assert_eq!(series("convoke_actor_restarts_total{").len(), 4);
    assert!(exposition.contains("convoke_actor_restarts_total{node=\"a\",actor=\"compressor\",reason=\"panic\"} 2"));
    assert_eq!(series("convoke_payloads_rejected_total{").len(), 3);
    assert!(exposition.contains("convoke_payloads_rejected_total{node=\"a\",reason=\"surprise\"} 1"));
}

#[test]
fn the_node_is_in_one_phase_at_a_time() {
    let metrics = metrics("a");
    metrics.round.phase.only("training");
    metrics.round.phase.only("gathering");
    let exposition = metrics.render();
    assert!(exposition.contains("convoke_phase{node=\"a\",phase=\"training\"} 0"));
    assert!(exposition.contains("convoke_phase{node=\"a\",phase=\"gathering\"} 1"));
}

#[test]
fn a_rounds_time_adds_up_in_the_sums() {
    let metrics = metrics("a");
    for _ in 0..2 {
        metrics.round.record_spent(Duration::from_millis(1500), Duration::from_millis(250), Duration::ZERO);
    }
    metrics.upkeep();
    let exposition = metrics.render();
    for (on, sum) in [("computing", "3"), ("communicating", "0.5"), ("waiting", "0")] {
        assert!(exposition.contains(&format!("convoke_round_spent_seconds_sum{{node=\"a\",on=\"{on}\"}} {sum}\n")));
        assert!(exposition.contains(&format!("convoke_round_spent_seconds_count{{node=\"a\",on=\"{on}\"}} 2\n")));
    }
}

#[test]
fn the_process_and_the_disk_are_read_at_each_scrape() {
    let metrics = metrics("a");
    metrics.watch_disk(std::env::temp_dir());
    let exposition = metrics.render();
    for name in ["convoke_process_resident_memory_bytes{", "convoke_disk_free_bytes{", "convoke_uptime_seconds{"] {
        let value: f64 = line(&exposition, name).rsplit(' ').next().unwrap().parse().unwrap();
        assert!(value > 0.0, "{name}");
    }
}
