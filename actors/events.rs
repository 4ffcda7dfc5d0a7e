//! `events.jsonl`: what happened to the node, for tests, tools and the curious, one typed event a line.
//!
//! [`Events::record`] never blocks an actor: a line goes through a bounded channel to a thread that writes it. What does
//! not fit is counted, and the count is itself a line, so a gap is always visible. The file outlives the process:
//! a start appends, after cutting off the line that a crash may have torn. It is not a source of truth for anything.

mod line;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{SystemTime, UNIX_EPOCH};

use convoke::terms::{Block, Round};

pub use line::{Event, Line};

/// The file's name in the data directory.
pub const FILE_NAME: &str = "events.jsonl";
/// Lines that wait for the disk at most.
const QUEUE_MAX: usize = 4096;
/// From this size on the file is put aside as `events.1.jsonl`, in place of the one put aside before.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// No block seen yet.
const NO_BLOCK: u64 = u64::MAX;

/// A handle to the node's event file; clones are cheap and write to the same file.
#[derive(Clone)]
pub struct Events {
    shared: Arc<Shared>,
    lines: Lines,
}

/// Where lines go.
#[derive(Clone)]
enum Lines {
    /// To the thread that writes the file.
    Writer(SyncSender<Message>),
    /// To whoever wants to see each when it is recorded.
    Witness(Arc<dyn Witness>),
}

/// Sees every event at the moment at which it is recorded: a simulation, which has a clock of its own.
pub trait Witness: Send + Sync {
    /// Milliseconds since 1970.
    fn unix_ms(&self) -> u64;

    /// Takes a line. It is called by an actor, so it must not wait for anything.
    fn see(&self, line: Line);
}

struct Shared {
    node: String,
    block: AtomicU64,
    lost: AtomicU64,
}

enum Message {
    Line(Box<Line>),
    /// Answer when everything before this is on disk.
    Flush(SyncSender<()>),
}

impl Events {
    /// Opens (or creates) the event file and starts its writer, which ends with the last handle.
    ///
    /// # Errors
    /// If the file cannot be opened for writing.
    pub fn open(path: &Path, node: &str) -> io::Result<Self> {
        Self::open_with(path, node, FILE_BYTES_MAX)
    }

    fn open_with(path: &Path, node: &str, file_bytes_max: u64) -> io::Result<Self> {
        let output = Output::open(path.to_owned(), file_bytes_max)?;
        let shared = Arc::new(Shared::new(node));
        let (queue, messages) = sync_channel(QUEUE_MAX);
        let writer = Writer { shared: shared.clone(), output, lost_written: 0 };
        std::thread::Builder::new().name(format!("{node}/events")).spawn(move || writer.run(&messages))?;
        Ok(Self { shared, lines: Lines::Writer(queue) })
    }

    /// Events that no file holds.
    #[must_use]
    pub fn seen_by(witness: Arc<dyn Witness>, node: &str) -> Self {
        Self { shared: Arc::new(Shared::new(node)), lines: Lines::Witness(witness) }
    }

    /// The block that the following lines carry.
    pub fn set_block(&self, block: Block) {
        self.shared.block.store(block.0, Ordering::Relaxed);
    }

    /// Records an event about a round, or about none. Never blocks: without room the line is counted as lost.
    pub fn record(&self, round: impl Into<Option<Round>>, event: Event) {
        match &self.lines {
            Lines::Witness(witness) => witness.see(self.shared.line(witness.unix_ms(), round.into(), event)),
            Lines::Writer(queue) => {
                let line = Message::Line(Box::new(self.shared.line(unix_ms(), round.into(), event)));
                if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = queue.try_send(line) {
                    self.shared.lost.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Waits until every line recorded before is on disk. For the end of a run, not for an actor.
    pub fn flush(&self) {
        let Lines::Writer(queue) = &self.lines else { return };
        let (done, wait) = sync_channel(1);
        if queue.send(Message::Flush(done)).is_ok() {
            // An error means that the writer is gone, and nothing is left to wait for.
            let _ = wait.recv();
        }
    }

    /// Lines that did not reach the file.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn new(node: &str) -> Self {
        Self { node: node.to_owned(), block: AtomicU64::new(NO_BLOCK), lost: AtomicU64::new(0) }
    }

    fn line(&self, at_ms: u64, round: Option<Round>, event: Event) -> Line {
        let block = self.block.load(Ordering::Relaxed);
        Line { at_ms, node: self.node.clone(), block: (block != NO_BLOCK).then_some(Block(block)), round, event }
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The thread that owns the file.
struct Writer {
    shared: Arc<Shared>,
    output: Output,
    /// How many of the lost lines the file tells about.
    lost_written: u64,
}

impl Writer {
    fn run(mut self, messages: &Receiver<Message>) {
        while let Ok(message) = messages.recv() {
            self.tell_lost();
            match message {
                Message::Line(line) => {
                    self.write(&line);
                }
                Message::Flush(done) => {
                    if let Err(error) = self.output.file.sync_data() {
                        tracing::warn!(%error, "events not synced to disk");
                    }
                    // An error means that nobody waits any more.
                    let _ = done.send(());
                }
            }
        }
        self.tell_lost();
    }

    /// Writes how many lines are missing before the one to come.
    fn tell_lost(&mut self) {
        let lost = self.shared.lost.load(Ordering::Relaxed);
        if lost > self.lost_written {
            let line = self.shared.line(unix_ms(), None, Event::EventsLost { count: lost - self.lost_written });
            if self.output.append(&line).is_ok() {
                self.lost_written = lost;
            }
        }
    }

    fn write(&mut self, line: &Line) {
        if let Err(error) = self.output.append(line)
            && self.shared.lost.fetch_add(1, Ordering::Relaxed) == self.lost_written
        {
            tracing::warn!(%error, "event not written");
        }
    }
}

/// The file, always a whole number of lines long.
struct Output {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_max: u64,
}

impl Output {
    fn open(path: PathBuf, bytes_max: u64) -> io::Result<Self> {
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(&path)?;
        let bytes = whole_lines(&mut file)?;
        file.set_len(bytes)?;
        Ok(Self { path, file, bytes, bytes_max })
    }

    fn append(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line).map_err(io::Error::other)?;
        text.push(b'\n');
        if self.bytes > 0 && self.bytes + text.len() as u64 > self.bytes_max {
            fs::rename(&self.path, self.path.with_extension("1.jsonl"))?;
            *self = Self::open(self.path.clone(), self.bytes_max)?;
        }
        if let Err(error) = self.file.write_all(&text) {
            // What a full disk took of the line must not stand before the next one.
            self.file.set_len(self.bytes)?;
            return Err(error);
        }
        self.bytes += text.len() as u64;
        Ok(())
    }
}

/// The length of the file up to and with its last line break.
fn whole_lines(file: &mut File) -> io::Result<u64> {
    let mut end = file.seek(SeekFrom::End(0))?;
    let mut block = [0; 4096];
    while end > 0 {
        let start = end.saturating_sub(block.len() as u64);
        let piece = &mut block[..usize::try_from(end - start).expect("at most a block")];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(piece)?;
        if let Some(at) = piece.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// Reads an event file, also while it is being written: a last line without its line break is not there yet.
///
/// # Errors
/// If the file cannot be read, or a whole line is not an event: the file is not ours, or of another version.
pub fn read(path: &Path) -> io::Result<Vec<Line>> {
    let bytes = fs::read(path)?;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let lines = bytes[..whole].split_inclusive(|byte| *byte == b'\n').enumerate();
    lines
        .map(|(idx, text)| {
            serde_json::from_slice(text).map_err(|error| {
                io::Error::new(io::ErrorKind::InvalidData, format!("{}, line {}: {error}", path.display(), idx + 1))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests;
