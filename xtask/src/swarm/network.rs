//! The swarm's processes together: the chain first and last, the nodes between.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::ExitStatus;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::interrupts::Interrupts;
use super::page::{self, Report};
use super::plan::{Member, Plan};
use super::process::{Launch, Process, in_words};

/// For a chain to listen; one that goes on reads its file first.
const CHAIN_START_MAX: Duration = Duration::from_secs(60);
/// For processes that were asked to stop; a node that was asked ends within nine seconds, its supervisor within ten.
const STOP_MAX: Duration = Duration::from_secs(15);
const LOOK_AGAIN: Duration = Duration::from_millis(25);

/// All processes, by the index of their member in the plan: the chain is 0.
#[derive(Debug)]
pub struct Network {
    seats: Vec<Seat>,
}

/// What stays of a member while its processes come and go.
#[derive(Debug)]
struct Seat {
    name: String,
    address: SocketAddr,
    launch: Launch,
    /// None once it was killed.
    process: Option<Process>,
    restarts: u32,
}

/// How a process ended when it was asked to.
#[derive(Debug)]
pub struct Stopped {
    pub name: String,
    /// None: it did not, and was killed.
    pub status: Option<ExitStatus>,
}

impl Stopped {
    pub fn cleanly(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    pub fn in_words(&self) -> String {
        let how = self.status.map_or_else(|| format!("killed after {} s", STOP_MAX.as_secs()), in_words);
        format!("{}: {how}", self.name)
    }
}

impl Network {
    /// Starts the chain, waits until it listens, and starts the nodes. None if a signal asks to stop before.
    pub fn start(plan: &Plan, program: &Path, dir: &Path, interrupts: &mut Interrupts) -> Result<Option<Self>> {
        let addresses = free_addresses(plan.members.len())?;
        let dir_text = dir.to_str().context("the directory's path is not UTF-8")?;
        let seat = |member: &Member, address| Seat {
            name: member.name.clone(),
            address,
            launch: Launch {
                program: program.to_owned(),
                arguments: plan.arguments(member, dir_text, address, addresses[0]),
                log: dir.join(format!("{}.log", member.name)),
            },
            process: None,
            restarts: 0,
        };
        let seats = plan.members.iter().zip(&addresses).map(|(member, address)| seat(member, *address)).collect();
        let mut network = Self { seats };
        network.seats[0].process = Some(network.seats[0].launch.start()?);
        let since = Instant::now();
        while TcpStream::connect_timeout(&addresses[0], LOOK_AGAIN).is_err() {
            if let Some(death) = network.death()? {
                bail!("{death}");
            }
            if interrupts.any() {
                return Ok(None);
            }
            if since.elapsed() > CHAIN_START_MAX {
                bail!("the chain does not listen after {} s:\n{}", since.elapsed().as_secs(), network.log_tail(0));
            }
            thread::sleep(LOOK_AGAIN);
        }
        for seat in &mut network.seats[1..] {
            seat.process = Some(seat.launch.start()?);
        }
        Ok(Some(network))
    }

    /// Ends a member with SIGKILL.
    pub fn kill(&mut self, member: usize) -> Result<()> {
        match self.seats[member].process.take() {
            Some(mut process) => process.kill().map(drop),
            None => Ok(()),
        }
    }

    /// Starts a killed member again, with the same arguments.
    pub fn start_again(&mut self, member: usize) -> Result<()> {
        let seat = &mut self.seats[member];
        seat.process = Some(seat.launch.start()?);
        seat.restarts += 1;
        Ok(())
    }

    pub fn restarts(&self, member: usize) -> u32 {
        self.seats[member].restarts
    }

    /// The end of what a member has printed.
    pub fn log_tail(&self, member: usize) -> String {
        let launch = &self.seats[member].launch;
        format!("{}, the last lines:\n{}", launch.log.display(), launch.log_tail())
    }

    /// A process that has ended by itself, in words.
    pub fn death(&mut self) -> Result<Option<String>> {
        for member in 0..self.seats.len() {
            let seat = &mut self.seats[member];
            let Some(process) = &mut seat.process else { continue };
            if let Some(status) = process.ended()? {
                let name = seat.name.clone();
                return Ok(Some(format!("{name} ended by itself ({}); {}", in_words(status), self.log_tail(member))));
            }
        }
        Ok(None)
    }

    /// What each node that runs says of itself; all are asked at once, so that one that hangs holds up nobody.
    pub fn ask(&self) -> Vec<(usize, Result<Report>)> {
        let nodes = self.seats.iter().enumerate().skip(1).filter(|(_, seat)| seat.process.is_some());
        thread::scope(|scope| {
            let asked: Vec<_> =
                nodes.map(|(member, seat)| (member, scope.spawn(|| page::fetch(seat.address)))).collect();
            asked
                .into_iter()
                .map(|(member, answer)| (member, answer.join().expect("asking a node does not panic")))
                .collect()
        })
    }

    /// Asks the nodes to stop, then the chain, since the nodes may have a last word for it. A signal while they stop
    /// ends all of them at once.
    pub fn stop(&mut self, interrupts: &mut Interrupts) -> Result<Vec<Stopped>> {
        let (chain, nodes) = self.seats.split_at_mut(1);
        let mut stopped = Vec::new();
        for group in [nodes, chain] {
            for process in group.iter_mut().filter_map(|seat| seat.process.as_mut()) {
                process.terminate()?;
            }
            let since = Instant::now();
            while group.iter().any(|seat| seat.process.is_some()) {
                let killed = since.elapsed() > STOP_MAX || interrupts.any();
                for seat in group.iter_mut() {
                    let Some(process) = &mut seat.process else { continue };
                    let status = process.ended()?;
                    if killed && status.is_none() {
                        process.kill()?;
                    }
                    if killed || status.is_some() {
                        seat.process = None;
                        stopped.push(Stopped { name: seat.name.clone(), status });
                    }
                }
                thread::sleep(LOOK_AGAIN);
            }
        }
        Ok(stopped)
    }
}

/// Loopback addresses that nobody uses. They are all taken before the first is given back, so that no two are one; that
/// somebody else takes one before its process does is possible and unlikely, and the process then says so.
fn free_addresses(n_addresses: usize) -> Result<Vec<SocketAddr>> {
    let taken: Vec<_> = (0..n_addresses)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect::<std::io::Result<_>>()
        .context("there are not enough free ports")?;
    taken.iter().map(|listener| listener.local_addr().context("a port has no address")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_member_gets_an_address_of_its_own() {
        let addresses = free_addresses(40).unwrap();
        assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), 40);
        assert!(addresses.iter().all(|address| address.ip().is_loopback() && address.port() != 0));
    }
}
