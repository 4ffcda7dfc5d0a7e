//! Asks for a password on the terminal, where nobody sees it typed.
//!
//! The terminal itself is opened, not standard input: a password that was piped in would stand in a shell's history.

use std::fs::File;
use std::io::{self, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

/// No password is longer.
const PASSWORD_BYTES_MAX: usize = 1024;

/// Asks with these words.
///
/// # Errors
/// There is no terminal, or it is gone.
pub fn password(words: &str) -> io::Result<String> {
    let terminal = File::options().read(true).write(true).open("/dev/tty");
    ask(&terminal.map_err(|error| io::Error::new(error.kind(), "there is no terminal to ask on"))?, words)
}

fn ask(mut terminal: &File, words: &str) -> io::Result<String> {
    let quiet = Quiet::new(terminal)?;
    terminal.write_all(words.as_bytes())?;
    let line = read_line(terminal);
    drop(quiet);
    // The end of the line was not shown either.
    terminal.write_all(b"\n")?;
    line
}

fn read_line(mut terminal: &File) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while terminal.read(&mut byte)? == 1 && byte != *b"\n" {
        line.push(byte[0]);
        if line.len() > PASSWORD_BYTES_MAX {
            return Err(io::Error::other("the password is too long"));
        }
    }
    String::from_utf8(line).map_err(|_| io::Error::other("the password is not text"))
}

/// A terminal that shows nothing of what is typed until this is dropped.
struct Quiet<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Quiet<'a> {
    fn new(terminal: &'a File) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(terminal, OptionalActions::Flush, &quiet)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing put back.
        let _ = tcsetattr(self.terminal, OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    use super::*;

    /// Both ends of a terminal: whoever sits at it, and what it is for a program.
    fn terminal() -> (File, File) {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        let name = ptsname(&keyboard, Vec::new()).unwrap().into_string().unwrap();
        (File::from(keyboard), File::options().read(true).write(true).open(name).unwrap())
    }

    #[test]
    fn what_is_typed_is_read_and_not_shown() {
        let (mut keyboard, screen) = terminal();
        let shows = |screen: &File| tcgetattr(screen).unwrap().local_modes.contains(LocalModes::ECHO);
        assert!(shows(&screen));
        let typist = std::thread::spawn(move || {
            let mut shown = [0; 64];
            let n = keyboard.read(&mut shown).unwrap();
            assert_eq!(&shown[..n], b"Password: ");
            keyboard.write_all("söme words\n".as_bytes()).unwrap();
            let n = keyboard.read(&mut shown).unwrap();
            (keyboard, shown[..n].to_vec())
        });
        assert_eq!(ask(&screen, "Password: ").unwrap(), "söme words");
        let (_keyboard, shown) = typist.join().unwrap();
        assert_eq!(shown, b"\r\n", "only the end of the line is shown");
        assert!(shows(&screen), "the terminal is as it was");
    }

    #[test]
    fn a_file_is_no_terminal() {
        assert!(ask(&tempfile::tempfile().unwrap(), "Password: ").is_err());
    }
}
