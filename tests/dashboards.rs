//! Boards and alerts against what a node really exports, both ways: a panel on a metric that does not exist, or a metric
//! that nobody can see, fails here and not in an incident.
//!
//! The boards are plain JSON for Grafana's import. There is no Grafana here to load them, so what it would trip over is
//! checked: keys, ids, grid, data source, and every query, parsed and held against the table of metrics. Where promtool
//! is installed, it has its say too.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, io};

use convoke::terms::Uid;
use convoke_node::metrics::{Declared, Kind, Metrics, NodeFacts, Values, Vocabulary, declared};
use promql_parser::label::{MatchOp, Matcher};
use promql_parser::parser::{self, AggregateExpr, Expr, LabelModifier, VectorSelector};
use promql_parser::util::{ExprVisitor, walk_expr};
use serde::Deserialize;
use serde_json::Value;

const BOARDS: [&str; 4] = ["training", "network", "gauntlet", "supervision"];
/// Columns of Grafana's grid.
const GRID_COLUMNS: u32 = 24;
/// Labels that Prometheus adds, or that every series of a node has.
const COMMON_LABELS: [&str; 4] = ["node", "instance", "job", "le"];
/// Metrics that Prometheus makes itself.
const OF_PROMETHEUS: [&str; 1] = ["up"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[allow(dead_code, reason = "the fields that no test reads are here to be allowed")]
struct Board {
    #[serde(rename = "__inputs")]
    inputs: Vec<Input>,
    #[serde(rename = "__requires")]
    requires: Vec<Value>,
    uid: String,
    title: String,
    description: String,
    tags: Vec<String>,
    schema_version: u32,
    version: u32,
    editable: bool,
    graph_tooltip: u32,
    refresh: String,
    time: BTreeMap<String, String>,
    timezone: String,
    links: Vec<Value>,
    annotations: BTreeMap<String, Vec<Annotation>>,
    templating: BTreeMap<String, Vec<Variable>>,
    panels: Vec<Panel>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Input {
    name: String,
    plugin_id: String,
}

#[derive(Deserialize)]
struct Annotation {
    datasource: DataSource,
    expr: String,
}

#[derive(Deserialize)]
struct Variable {
    name: String,
    datasource: DataSource,
    definition: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[allow(dead_code, reason = "the fields that no test reads are here to be allowed")]
struct Panel {
    id: u32,
    #[serde(rename = "type")]
    kind: String,
    title: String,
    #[serde(default)]
    description: String,
    datasource: Option<DataSource>,
    grid_pos: GridPos,
    #[serde(default)]
    targets: Vec<Target>,
    field_config: Option<FieldConfig>,
    options: Option<Value>,
    transformations: Option<Vec<Value>>,
    collapsed: Option<bool>,
    panels: Option<Vec<Panel>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GridPos {
    h: u32,
    w: u32,
    x: u32,
    y: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[allow(dead_code, reason = "the fields that no test reads are here to be allowed")]
struct Target {
    ref_id: String,
    datasource: DataSource,
    expr: String,
    legend_format: String,
    instant: Option<Value>,
    range: Option<bool>,
    format: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "the fields that no test reads are here to be allowed")]
struct FieldConfig {
    defaults: Defaults,
    overrides: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "the fields that no test reads are here to be allowed")]
struct Defaults {
    unit: String,
    min: Option<f64>,
    color: Option<Value>,
    thresholds: Option<Value>,
    custom: Option<Value>,
}

#[derive(Deserialize, PartialEq, Debug)]
#[serde(deny_unknown_fields)]
struct DataSource {
    #[serde(rename = "type")]
    kind: String,
    uid: String,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|dir| dir.join("dashboards"))
        .find(|dir| dir.is_dir())
        .unwrap()
}

fn text(file: &str) -> String {
    fs::read_to_string(folder().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn boards() -> impl Iterator<Item = (&'static str, Board)> {
    BOARDS.iter().map(|name| {
        let board = serde_json::from_str(&text(&format!("{name}.json")));
        (*name, board.unwrap_or_else(|error| panic!("{name}.json: {error}")))
    })
}

/// Every query of the boards, with where it stands.
fn board_queries() -> Vec<(String, String)> {
    let mut queries = Vec::new();
    for (name, board) in boards() {
        for annotation in board.annotations.values().flatten() {
            queries.push((format!("{name}, annotation"), annotation.expr.clone()));
        }
        for panel in &board.panels {
            for target in &panel.targets {
                queries.push((format!("{name}, {}, {}", panel.title, target.ref_id), target.expr.clone()));
            }
        }
    }
    queries
}

/// One alert, as far as its lines tell: the file keeps each key on a line of its own.
#[derive(Default)]
struct Alert {
    name: String,
    keys: BTreeMap<String, String>,
}

fn alerts() -> Vec<Alert> {
    let mut alerts: Vec<Alert> = Vec::new();
    for line in text("alerts.yml").lines().filter(|line| !line.trim_start().starts_with('#')) {
        let Some((key, value)) = line.trim().split_once(':') else { panic!("a line without a key: {line}") };
        let value = value.trim().to_owned();
        match (key, alerts.last_mut()) {
            ("- alert", _) => alerts.push(Alert { name: value, ..Alert::default() }),
            (_, Some(alert)) => {
                let repeated = alert.keys.insert(key.to_owned(), value);
                assert!(repeated.is_none(), "{}: {key} twice", alert.name);
            }
            (_, None) => {}
        }
    }
    alerts
}

fn alert_queries() -> Vec<(String, String)> {
    alerts().into_iter().map(|alert| (alert.name, alert.keys["expr"].clone())).collect()
}

/// What Grafana puts in for its variables.
fn parse(place: &str, query: &str) -> Expr {
    let query = query.replace("$__rate_interval", "5m").replace("$node", ".*");
    assert!(!query.contains('$'), "{place}: an unknown variable in {query}");
    parser::parse(&query).unwrap_or_else(|error| panic!("{place}: {query}: {error}"))
}

/// A use of a metric: its selector, and the function of the range it is in.
struct Use {
    name: String,
    matchers: Vec<Matcher>,
    range_function: Option<&'static str>,
}

/// Collects uses of metrics and labels that are grouped by.
#[derive(Default)]
struct Uses {
    function: &'static str,
    metrics: Vec<Use>,
    groupings: BTreeSet<String>,
}

impl Uses {
    fn add(&mut self, selector: &VectorSelector, range_function: Option<&'static str>) {
        let name = selector.name.clone().expect("every selector names its metric");
        self.metrics.push(Use { name, matchers: selector.matchers.matchers.clone(), range_function });
    }
}

impl ExprVisitor for Uses {
    type Error = ();

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, ()> {
        match expr {
            Expr::Call(call) => self.function = call.func.name,
            Expr::VectorSelector(selector) => self.add(selector, None),
            Expr::MatrixSelector(selector) => self.add(&selector.vs, Some(self.function)),
            Expr::Aggregate(AggregateExpr { modifier: Some(modifier), .. }) => {
                let (LabelModifier::Include(labels) | LabelModifier::Exclude(labels)) = modifier;
                self.groupings.extend(labels.labels.iter().cloned());
            }
            _ => {}
        }
        Ok(true)
    }
}

fn uses(place: &str, query: &str) -> Uses {
    let mut uses = Uses::default();
    walk_expr(&mut uses, &parse(place, query)).unwrap();
    uses
}

/// The metric of the table that a name in a query means: histograms are asked by their parts.
fn declared_as(name: &str) -> Option<(&'static Declared, bool)> {
    let exact = declared().find(|metric| metric.name == name && metric.kind != Kind::Histogram);
    let part_of = |metric: &&Declared| {
        metric.kind == Kind::Histogram
            && name.strip_prefix(metric.name).is_some_and(|part| ["_bucket", "_sum", "_count"].contains(&part))
    };
    exact.map(|metric| (metric, metric.kind == Kind::Counter)).or_else(|| declared().find(part_of).map(|m| (m, true)))
}

/// A node's registry in which everything has happened once.
fn exposition() -> String {
    let facts = NodeFacts {
        node: "a".to_owned(),
        version: "1.2.3".to_owned(),
        role: "both".to_owned(),
        run_id: "ab".to_owned(),
        quantiser: "two-bit".to_owned(),
    };
    let vocabulary = Vocabulary {
        actors: &["gauntlet"],
        restart_reasons: &["panic"],
        phases: &["training"],
        reject_reasons: &["late"],
        refuse_reasons: &["sealed"],
        call_kinds: &["commit"],
    };
    let metrics = Metrics::new(&facts, &vocabulary);
    metrics.gauntlet.record_peer(Uid(1), 0.5, 2.0);
    metrics.gauntlet.weight.with(Uid(1)).set(1.0);
    metrics.render()
}

#[test]
fn the_boards_have_the_keys_that_grafana_knows_and_each_panel_its_own_id() {
    let mut uids = BTreeSet::new();
    for (name, board) in boards() {
        assert!(uids.insert(board.uid.clone()), "{name}: uid {} twice", board.uid);
        assert!(!board.title.is_empty() && !board.description.is_empty() && board.schema_version >= 39, "{name}");
        let ids: BTreeSet<_> = board.panels.iter().map(|panel| panel.id).collect();
        assert_eq!(ids.len(), board.panels.len(), "{name}: panel ids repeat");
        for panel in board.panels.iter().filter(|panel| panel.kind != "row") {
            let place = format!("{name}, {}", panel.title);
            assert!(!panel.title.is_empty() && panel.description.len() > 10, "{place}: no description");
            assert!(
                panel.field_config.as_ref().is_some_and(|config| !config.defaults.unit.is_empty()),
                "{place}: no unit"
            );
            let refs: BTreeSet<_> = panel.targets.iter().map(|target| &target.ref_id).collect();
            assert!(!refs.is_empty() && refs.len() == panel.targets.len(), "{place}: no targets, or refIds repeat");
        }
    }
}

#[test]
fn panels_lie_inside_the_grid_and_do_not_overlap() {
    for (name, board) in boards() {
        let mut taken = BTreeMap::new();
        for panel in &board.panels {
            let GridPos { h, w, x, y } = panel.grid_pos;
            assert!(h > 0 && w > 0 && x + w <= GRID_COLUMNS, "{name}, {}: outside the grid", panel.title);
            for cell in (y..y + h).flat_map(|row| (x..x + w).map(move |column| (row, column))) {
                if let Some(other) = taken.insert(cell, &panel.title) {
                    panic!("{name}: {} and {other} overlap", panel.title);
                }
            }
        }
    }
}

#[test]
fn every_query_goes_to_the_chosen_data_source_and_to_the_chosen_nodes() {
    let chosen = DataSource { kind: "prometheus".to_owned(), uid: "${DS_PROMETHEUS}".to_owned() };
    for (name, board) in boards() {
        assert!(board.inputs.iter().any(|input| input.name == "DS_PROMETHEUS" && input.plugin_id == "prometheus"));
        let variables: Vec<_> = board.templating.values().flatten().collect();
        assert!(variables.iter().any(|variable| variable.name == "node"), "{name}: no variable `node`");
        for variable in variables {
            assert_eq!(variable.datasource, chosen, "{name}, variable");
            let metric = variable.definition.strip_prefix("label_values(").and_then(|rest| rest.split(',').next());
            assert!(declared().any(|known| Some(known.name) == metric), "{name}: {}", variable.definition);
        }
        assert!(board.annotations.values().flatten().all(|annotation| annotation.datasource == chosen), "{name}");
        for panel in board.panels.iter().filter(|panel| panel.kind != "row") {
            assert_eq!(panel.datasource.as_ref(), Some(&chosen), "{name}, {}", panel.title);
            assert!(panel.targets.iter().all(|target| target.datasource == chosen), "{name}, {}", panel.title);
        }
    }
    for (place, query) in board_queries() {
        for metric in uses(&place, &query).metrics {
            let by_node = |matcher: &Matcher| matcher.name == "node" && matches!(matcher.op, MatchOp::Re(_));
            assert!(metric.matchers.iter().any(by_node), "{place}: {} is not limited to $node", metric.name);
        }
    }
}

#[test]
fn every_metric_of_a_board_or_alert_is_exported_with_the_labels_it_is_asked_by() {
    let exposition = exposition();
    let exported: BTreeSet<_> = exposition
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    for (place, query) in board_queries().into_iter().chain(alert_queries()) {
        let uses = uses(&place, &query);
        let mut labels: BTreeSet<_> = COMMON_LABELS.into();
        for metric in uses.metrics.iter().filter(|metric| !OF_PROMETHEUS.contains(&metric.name.as_str())) {
            assert!(exported.contains(metric.name.as_str()), "{place}: no node exports {}", metric.name);
            let (declared, grows) = declared_as(&metric.name).unwrap();
            if metric.range_function.is_some_and(|function| ["rate", "irate", "increase"].contains(&function)) {
                assert!(grows, "{place}: rate of {}, which may fall", metric.name);
            }
            labels.extend(declared.labels.iter().map(|(label, _)| *label));
            check_matchers(&place, declared, &metric.matchers);
        }
        for label in &uses.groupings {
            assert!(labels.contains(label.as_str()), "{place}: grouped by {label}, which nothing in it has");
        }
    }
}

/// A matcher on a label that is not there, or for a value it never has, matches nothing for ever.
fn check_matchers(place: &str, metric: &Declared, matchers: &[Matcher]) {
    for matcher in matchers.iter().filter(|matcher| !COMMON_LABELS.contains(&matcher.name.as_str())) {
        let label = metric.labels.iter().find(|(label, _)| *label == matcher.name);
        let Some((_, values)) = label else { panic!("{place}: {} has no label {}", metric.name, matcher.name) };
        if let (Values::Fixed(values), MatchOp::Equal | MatchOp::NotEqual) = (values, &matcher.op) {
            let known = values.contains(&matcher.value.as_str());
            assert!(known, "{place}: {} of {} is never {}", matcher.name, metric.name, matcher.value);
        }
    }
}

#[test]
fn every_metric_of_a_node_is_on_a_board() {
    let shown: BTreeSet<_> = board_queries()
        .iter()
        .flat_map(|(place, query)| uses(place, query).metrics)
        .filter_map(|metric| declared_as(&metric.name))
        .map(|(metric, _)| metric.name)
        .collect();
    let hidden: Vec<_> = declared().map(|metric| metric.name).filter(|name| !shown.contains(name)).collect();
    assert!(hidden.is_empty(), "on no board: {hidden:?}");
}

#[test]
fn legends_name_labels_that_the_answer_has() {
    for (name, board) in boards() {
        for target in board.panels.iter().flat_map(|panel| &panel.targets) {
            let uses = uses(name, &target.expr);
            let mut labels: BTreeSet<String> = COMMON_LABELS.iter().map(|label| (*label).to_owned()).collect();
            for metric in &uses.metrics {
                labels.extend(declared_as(&metric.name).unwrap().0.labels.iter().map(|(label, _)| (*label).to_owned()));
            }
            if !uses.groupings.is_empty() {
                labels.retain(|label| uses.groupings.contains(label));
            }
            for legend in target.legend_format.split("{{").skip(1) {
                let label = legend.split("}}").next().unwrap();
                assert!(labels.contains(label), "{name}: {} has no {label} for its legend", target.expr);
            }
        }
    }
}

#[test]
fn every_alert_has_a_severity_a_runbook_and_a_test() {
    let tests = text("alerts_test.yml");
    let alerts = alerts();
    assert!(alerts.len() > 10);
    let names: BTreeSet<_> = alerts.iter().map(|alert| &alert.name).collect();
    assert_eq!(names.len(), alerts.len(), "alert names repeat");
    for Alert { name, keys } in &alerts {
        assert!(name.starts_with("Convoke"), "{name}");
        assert!(["critical", "warning", "info"].contains(&keys["severity"].as_str()), "{name}: {}", keys["severity"]);
        assert!(keys["summary"].len() > 10 && keys["runbook"].len() > 60, "{name}: no text");
        assert!(tests.contains(&format!("alertname=\"{name}\"")), "{name}: no test");
    }
}

#[test]
fn prometheus_scrapes_the_page_and_loads_the_alerts() {
    let config = text("prometheus.yml");
    for line in ["  - alerts.yml", "  - job_name: convoke", "    metrics_path: /metrics"] {
        assert!(config.lines().any(|found| found.starts_with(line)), "no line `{line}`");
    }
    // `up{job="convoke"}` of the first alert means this job.
    assert!(text("alerts.yml").contains("up{job=\"convoke\"}"));
}

/// Runs promtool in the folder of the boards; without one on the PATH there is nothing to ask.
fn promtool(arguments: &[&str], input: Option<&str>) {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(folder()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => panic!("promtool: {error}"),
    };
    let mut stdin = child.stdin.take().unwrap();
    io::Write::write_all(&mut stdin, input.unwrap_or_default().as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "promtool {}:\n{out}{err}", arguments.join(" "));
}

#[test]
fn promtool_accepts_the_alerts_and_every_alert_fires_in_its_test() {
    promtool(&["check", "rules", "alerts.yml"], None);
    promtool(&["check", "config", "prometheus.yml"], None);
    promtool(&["test", "rules", "alerts_test.yml"], None);
}

#[test]
fn promtool_accepts_the_exposition() {
    promtool(&["check", "metrics"], Some(&exposition()));
}
