//! A process of the swarm: started with its output in a file, killed or asked to stop, and never left behind.
//!
//! Three things end it with the swarm: being asked to stop, this value being dropped (also by a panic), and on Linux,
//! where even a killed swarm can take its processes along, the leash ([`run_leashed`]). Each process leads a process
//! group of its own, since Ctrl-C in a terminal goes to the whole group of the swarm, and it is the swarm that stops
//! its nodes before the chain.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal};

/// The end of a log that is shown when its process has died.
const TAIL_LINES: usize = 20;
const TAIL_BYTES: u64 = 16 << 10;

/// The hidden command by which xtask starts a process on a leash.
pub const LEASHED: &str = "leashed";

/// How to start a process, again if need be.
#[derive(Debug, Clone)]
pub struct Launch {
    pub program: PathBuf,
    pub arguments: Vec<String>,
    /// Gets everything that it prints, after what is there.
    pub log: PathBuf,
}

/// A process that runs, or has run.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Launch {
    /// Starts it. Must be called from the thread that lives as long as the swarm: the leash is tied to the thread.
    pub fn start(&self) -> Result<Process> {
        let log = File::options().create(true).append(true).open(&self.log);
        let mut log = log.with_context(|| format!("{} cannot be written", self.log.display()))?;
        writeln!(log, "== {} {}", self.program.display(), self.arguments.join(" "))?;
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let child = command.spawn().with_context(|| format!("{} cannot be started", self.program.display()))?;
        Ok(Process { child })
    }

    /// The kernel resolves the link even if xtask's file has been replaced by a newer build since.
    #[cfg(target_os = "linux")]
    fn command(&self) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command.arg(LEASHED).arg(std::process::id().to_string()).arg(&self.program).args(&self.arguments);
        command
    }

    #[cfg(not(target_os = "linux"))]
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        command
    }

    /// The last lines of what it printed.
    pub fn log_tail(&self) -> String {
        tail(&self.log).unwrap_or_else(|error| format!("{} cannot be read: {error}", self.log.display()))
    }
}

/// `xtask leashed PARENT PROGRAM ARGUMENTS`: becomes the program, which the kernel kills when its parent ends.
///
/// Asking for that between fork and exec would take `unsafe`; asking for it in a program that then becomes another one
/// does not, and the wish outlives the change.
#[cfg(target_os = "linux")]
pub fn run_leashed(arguments: &[String]) -> Result<std::process::ExitCode> {
    let [parent, program, arguments @ ..] = arguments else { anyhow::bail!("leashed PARENT PROGRAM [ARGUMENTS]") };
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).context("the leash cannot be set")?;
    // A parent that ended before the wish was known sends nothing any more.
    let alive = rustix::process::getppid().is_some_and(|pid| pid.as_raw_pid().to_string() == *parent);
    anyhow::ensure!(alive, "process {parent} has ended");
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("{program} cannot be started"))
}

impl Process {
    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("a process cannot be looked at")
    }

    /// Asks it to stop.
    pub fn terminate(&mut self) -> Result<()> {
        // A process that has been waited for has given its number back.
        if self.ended()?.is_none() {
            rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM)
                .context("SIGTERM cannot be sent")?;
        }
        Ok(())
    }

    /// Ends it with SIGKILL, and waits for that.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child.kill().context("SIGKILL cannot be sent")?;
        self.child.wait().context("a killed process cannot be waited for")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself, which is as well.
        let _ = self.kill();
    }
}

/// An exit status in words.
pub fn in_words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown".to_owned(),
    }
}

fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = fs::metadata(path)?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n"))
}
