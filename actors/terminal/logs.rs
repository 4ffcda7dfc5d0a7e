//! Logs to stderr: pretty around a progress bar, or JSON lines.
//!
//! A bar redraws its line in place; a log written beside it would be drawn over. So on a terminal each event is one
//! write while the bars are lifted off.

use std::io::{self, Write};

use indicatif::MultiProgress;
use tracing::Subscriber;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

use super::Terminal;

/// What other crates may say when only a level is given.
const OTHERS: &str = "warn";

/// Why logs could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    /// Neither a level nor directives.
    #[error("log level `{level}` is none of error, warn, info, debug, trace, nor a list of directives: {reason}")]
    Level {
        /// What was given.
        level: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Something else has the process's logs.
    #[error("logs are set up twice in this process")]
    Twice,
}

pub(super) fn init(terminal: &Terminal, level: &str) -> Result<(), LogsError> {
    let writer = LogWriter { bars: terminal.bars.clone(), sink: io::stderr };
    let set = match terminal.bars {
        Some(_) => pretty(filter(level)?, writer).try_init(),
        None => json(filter(level)?, writer).try_init(),
    };
    set.map_err(|_| LogsError::Twice)
}

/// A bare level means our own crates; the network's crates say much at `info`.
fn filter(level: &str) -> Result<EnvFilter, LogsError> {
    let is_level = level.parse::<tracing::Level>().is_ok();
    let directives = match level {
        _ if is_level => format!("{OTHERS},convoke={level},convoke_node={level}"),
        _ => level.to_owned(),
    };
    let refused = |reason: String| LogsError::Level { level: level.to_owned(), reason };
    // A lone word is a target in the language of directives, and would turn everything off without a word.
    if !is_level && !level.contains(['=', ',']) && level != "off" {
        return Err(refused("it names no level".to_owned()));
    }
    EnvFilter::try_new(directives).map_err(|error| refused(error.to_string()))
}

fn pretty<W>(filter: EnvFilter, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let colours = std::env::var_os("NO_COLOR").is_none();
    fmt().with_env_filter(filter).with_writer(writer).with_target(false).with_ansi(colours).compact().finish()
}

fn json<W>(filter: EnvFilter, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    fmt().json().with_env_filter(filter).with_writer(writer).flatten_event(true).with_current_span(false).finish()
}

/// Writes each event in one piece, with the bars lifted off meanwhile.
#[derive(Clone)]
struct LogWriter<F> {
    bars: Option<MultiProgress>,
    sink: F,
}

impl<'a, F, S> MakeWriter<'a> for LogWriter<F>
where
    F: Fn() -> S + Clone + 'a,
    S: Write,
{
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl<F: Fn() -> S, S: Write> Write for LogWriter<F> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let write = || (self.sink)().write_all(line);
        match &self.bars {
            Some(bars) => bars.suspend(write)?,
            None => write()?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        (self.sink)().flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use indicatif::{ProgressBar, ProgressDrawTarget, TermLike};
    use tracing::subscriber::with_default;

    use super::*;

    /// A terminal, and a log's sink, that remember what was written, in order.
    #[derive(Debug, Clone, Default)]
    struct Screen(Arc<Mutex<String>>);

    impl Screen {
        fn text(&self) -> String {
            self.0.lock().unwrap().clone()
        }

        fn push(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }
    }

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.push(std::str::from_utf8(bytes).unwrap())?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            80
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.push(&format!("{text}\n"))
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.push(text)
        }
        fn clear_line(&self) -> io::Result<()> {
            self.push("<clear>")
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_log_line_stands_between_a_cleared_bar_and_the_bar_drawn_anew() {
        let screen = Screen::default();
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::term_like(Box::new(screen.clone())));
        let bar = bars.add(ProgressBar::new(10));
        bar.tick();
        let sink = screen.clone();
        let writer = LogWriter { bars: Some(bars), sink: move || sink.clone() };
        with_default(pretty(filter("info").unwrap(), writer), || {
            tracing::info!(target: "convoke_node", round = 3, "outer step");
        });
        let text = screen.text();
        let (before, after) = text.split_once("outer step").unwrap();
        assert!(before.lines().last().unwrap().contains("<clear>"), "{text:?}");
        let (rest, redrawn) = after.split_once('\n').unwrap();
        assert!(rest.contains("round") && rest.contains('3'), "{text:?}");
        assert!(redrawn.contains("0/10"), "{text:?}");
    }

    #[test]
    fn elsewhere_a_log_is_one_json_object_a_line() {
        let screen = Screen::default();
        let sink = screen.clone();
        let writer = LogWriter { bars: None, sink: move || sink.clone() };
        with_default(json(filter("info").unwrap(), writer), || {
            tracing::info!(target: "convoke_node", round = 3, "outer step");
            tracing::info!(target: "iroh", "noise");
            tracing::debug!(target: "convoke_node", "detail");
        });
        let text = screen.text();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 1, "{text}");
        assert_eq!((&lines[0]["message"], &lines[0]["round"]), (&"outer step".into(), &3.into()));
    }

    #[test]
    fn a_level_is_a_word_or_directives_and_anything_else_is_refused_by_name() {
        for level in ["error", "info", "TRACE", "off", "info,iroh=debug", "convoke_node=trace"] {
            assert!(filter(level).is_ok(), "{level}");
        }
        for level in ["loud", "", "convoke_node=loud", "info,=,"] {
            let error = filter(level).err().unwrap_or_else(|| panic!("`{level}` passes")).to_string();
            assert!(error.starts_with(&format!("log level `{level}` is none of")), "{error}");
        }
    }
}
