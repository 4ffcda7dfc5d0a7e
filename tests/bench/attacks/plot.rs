//! A plot as SVG: panels one above the other, lines over one common axis. The same numbers give the same bytes.

use std::fmt::Write;

/// A line of a panel.
pub struct Line {
    pub name: String,
    /// As SVG takes it.
    pub colour: &'static str,
    /// Dashed: what is not measured, but to be compared with.
    pub is_dashed: bool,
    /// Ascending by x; what is not finite is left out.
    pub points: Vec<(f64, f64)>,
}

/// Lines with one unit.
pub struct Panel {
    pub title: &'static str,
    /// The values that must be seen, whether a line has them or not.
    pub least_range: (f64, f64),
    pub lines: Vec<Line>,
}

const WIDTH: f64 = 760.0;
const PANEL_HEIGHT: f64 = 300.0;
/// Around the lines of a panel.
const LEFT: f64 = 60.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 36.0;
const BOTTOM: f64 = 44.0;
/// Ticks that an axis has, about.
const N_TICKS: f64 = 6.0;

/// From values to places on an axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    pub from: (f64, f64),
    pub to: (f64, f64),
}

impl Scale {
    pub fn at(&self, value: f64) -> f64 {
        let share = (value - self.from.0) / (self.from.1 - self.from.0);
        self.to.0 + share * (self.to.1 - self.to.0)
    }
}

/// The distance of ticks: 1, 2 or 5 times a power of ten.
pub fn step(range: (f64, f64)) -> f64 {
    let rough = (range.1 - range.0) / N_TICKS;
    let power = 10_f64.powi(rough.log10().floor() as i32);
    let factors = [1.0, 2.0, 5.0, 10.0];
    factors.into_iter().map(|factor| factor * power).find(|step| *step >= rough * 0.999).unwrap_or(10.0 * power)
}

/// The ticks in a range, ascending.
pub fn ticks(range: (f64, f64)) -> Vec<f64> {
    let step = step(range);
    let (first, last) = ((range.0 / step - 1e-9).ceil() as i64, (range.1 / step + 1e-9).floor() as i64);
    (first..=last).map(|tick| tick as f64 * step).collect()
}

/// What a panel shows: all that is finite, out to the next ticks.
pub fn range(panel: &Panel) -> (f64, f64) {
    let values = panel.lines.iter().flat_map(|line| &line.points).map(|(_, y)| *y).filter(|y| y.is_finite());
    let (low, high) = values.fold(panel.least_range, |(low, high), y| (low.min(y), high.max(y)));
    let step = step((low, high));
    ((low / step + 1e-9).floor() * step, (high / step - 1e-9).ceil() * step)
}

/// The panels over an axis of shares from 0 to `x_max`.
pub fn svg(panels: &[Panel], x_title: &str, x_max: f64) -> String {
    let height = PANEL_HEIGHT * panels.len() as f64;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    for (idx, panel) in panels.iter().enumerate() {
        draw(&mut text, panel, PANEL_HEIGHT * idx as f64, x_title, x_max);
    }
    text.push_str("</svg>\n");
    text
}

fn draw(text: &mut String, panel: &Panel, top: f64, x_title: &str, x_max: f64) {
    let y_range = range(panel);
    let x = Scale { from: (0.0, x_max), to: (LEFT, WIDTH - RIGHT) };
    let y = Scale { from: y_range, to: (top + PANEL_HEIGHT - BOTTOM, top + TOP) };
    let (left, right, bottom) = (x.to.0, x.to.1, y.to.0);
    put(text, (left, top + TOP - 14.0), "start", panel.title);
    put(text, (f64::midpoint(left, right), bottom + 34.0), "middle", x_title);
    for tick in ticks(y_range) {
        stroke(text, &[(left, y.at(tick)), (right, y.at(tick))], "#dddddd", false);
        put(text, (left - 6.0, y.at(tick) + 4.0), "end", &label(tick, step(y_range)));
    }
    for tick in ticks((0.0, x_max)) {
        stroke(text, &[(x.at(tick), bottom), (x.at(tick), bottom + 4.0)], "#888888", false);
        put(text, (x.at(tick), bottom + 18.0), "middle", &format!("{:.0} %", 100.0 * tick));
    }
    for (idx, line) in panel.lines.iter().enumerate() {
        let finite = line.points.iter().filter(|(_, y)| y.is_finite());
        let points: Vec<(f64, f64)> = finite.map(|(share, value)| (x.at(*share), y.at(*value))).collect();
        stroke(text, &points, line.colour, line.is_dashed);
        let at = top + TOP + 18.0 * (idx as f64 + 0.5);
        stroke(text, &[(right + 12.0, at), (right + 36.0, at)], line.colour, line.is_dashed);
        put(text, (right + 42.0, at + 4.0), "start", &line.name);
    }
}

/// With as many digits as its distance from the next needs.
fn label(tick: f64, step: f64) -> String {
    let digits = (-step.log10().floor()).max(0.0) as usize;
    format!("{tick:.digits$}")
}

fn put(text: &mut String, at: (f64, f64), anchor: &str, words: &str) {
    // Writing to a string cannot fail, here and below.
    let _ = writeln!(text, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{words}</text>", at.0, at.1);
}

fn stroke(text: &mut String, points: &[(f64, f64)], colour: &str, is_dashed: bool) {
    let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let dashes = if is_dashed { " stroke-dasharray=\"5 4\"" } else { "" };
    let points = points.join(" ");
    let _ = writeln!(
        text,
        "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"{dashes}/>"
    );
}
