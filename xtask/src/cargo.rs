//! Commands that hand over to cargo or to the node's own binary.
//!
//! The node replaces this process where the system can do that, so that signals reach it and its exit code is the
//! command's: whoever watches `cargo xtask run-node` watches the node.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

/// A benchmark: what it is called, the package and target that hold it, what it shows.
struct Bench {
    name: &'static str,
    package: &'static str,
    target: &'static str,
    shows: &'static str,
}

const BENCHES: [Bench; 8] = [
    Bench {
        name: "first-light",
        package: "convoke-node",
        target: "first_light",
        shows: "the default run: seconds to the first round, held-out loss, memory, payload",
    },
    Bench {
        name: "learning",
        package: "convoke-node",
        target: "learning",
        shows: "held-out loss at equal tokens, by method, with bytes a round: AdamW, DiLoCo, SparseLoCo",
    },
    Bench {
        name: "attacks",
        package: "convoke-node",
        target: "attacks",
        shows: "learning with hostile miners: loss, honest weight, accusations; writes docs/attacks.md and its plot",
    },
    Bench {
        name: "copies",
        package: "convoke-node",
        target: "copies",
        shows: "how far honest payloads of a round agree, which copies are told from",
    },
    Bench {
        name: "swarm",
        package: "convoke-node",
        target: "swarm",
        shows: "what running together costs: communication of a round, joining, processor time of the protocol",
    },
    Bench {
        name: "state",
        package: "convoke-node",
        target: "state",
        shows: "moving θ to a joiner, from one holder and from three, beside a plain iroh-blobs transfer",
    },
    Bench {
        name: "train",
        package: "convoke-node",
        target: "train",
        shows: "tokens per second of inner steps, by number of workers",
    },
    Bench {
        name: "payload",
        package: "convoke",
        target: "payload",
        shows: "payloads against the floor of memory and the limit of information",
    },
];

/// The repository's root, wherever the command was started.
pub fn root() -> PathBuf {
    let xtask = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&xtask).parent().expect("xtask lies in the root").to_owned()
}

/// Cargo, in the repository's root.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root()).args(arguments);
    cargo
}

/// Builds the node and becomes `convoke run`.
pub fn run_node(arguments: &[String]) -> Result<ExitCode> {
    let (features, arguments) = split_features(arguments)?;
    let mut node = Command::new(build_node(features.as_deref())?);
    node.arg("run").args(arguments);
    become_command(node)
}

/// Builds the node and becomes `convoke tokenizer train`.
pub fn train_tokenizer(arguments: &[String]) -> Result<ExitCode> {
    let mut node = Command::new(build_node(None)?);
    node.args(["tokenizer", "train"]);
    if !arguments.iter().any(|argument| argument == "--out" || argument.starts_with("--out=")) {
        node.arg("--out").arg(root().join("configs/data/tokenizer.json"));
    }
    node.args(arguments);
    become_command(node)
}

/// Runs one benchmark, or lists them.
pub fn bench(arguments: &[String]) -> Result<ExitCode> {
    let Some((name, arguments)) = arguments.split_first() else {
        for bench in &BENCHES {
            println!("{:12} {}", bench.name, bench.shows);
        }
        return Ok(ExitCode::SUCCESS);
    };
    let Some(bench) = BENCHES.iter().find(|bench| bench.name == name) else {
        let names = BENCHES.map(|bench| bench.name).join(", ");
        bail!("there is no benchmark `{name}`: choose one of {names}");
    };
    let mut cargo = cargo(&["bench", "--package", bench.package, "--bench", bench.target, "--"]);
    cargo.args(arguments);
    become_command(cargo)
}

/// Runs a simulation.
pub fn sim(arguments: &[String]) -> Result<ExitCode> {
    let mut cargo = cargo(&["bench", "--package", "convoke-node", "--bench", "sim", "--"]);
    cargo.args(arguments);
    become_command(cargo)
}

/// Takes `--features LIST`, which is cargo's, out of the node's arguments.
fn split_features(arguments: &[String]) -> Result<(Option<String>, Vec<String>)> {
    let mut features = None;
    let mut rest = Vec::new();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        if argument == "--features" {
            features = Some(arguments.next().context("--features takes a list, such as `cuda`")?.clone());
        } else if let Some(list) = argument.strip_prefix("--features=") {
            features = Some(list.to_owned());
        } else {
            rest.push(argument.clone());
        }
    }
    Ok((features, rest))
}

/// Builds the node's release binary, and says where it is.
pub fn build_node(features: Option<&str>) -> Result<PathBuf> {
    let mut cargo = cargo(&["build", "--release", "--package", "convoke-node", "--bin", "convoke"]);
    cargo.arg("--message-format=json-render-diagnostics").stdout(Stdio::piped());
    if let Some(features) = features {
        cargo.args(["--features", features]);
    }
    let built = cargo.spawn().and_then(std::process::Child::wait_with_output).context("cargo cannot be started")?;
    if !built.status.success() {
        bail!("the node does not build");
    }
    // Asking cargo where the binary is holds for every target directory and every target.
    executable(&String::from_utf8_lossy(&built.stdout)).context("cargo built no binary `convoke`")
}

/// The last executable that cargo's messages name.
fn executable(messages: &str) -> Option<PathBuf> {
    let (_, path) = messages.rsplit_once("\"executable\":\"")?;
    let path = path.split_once('"')?.0;
    Some(PathBuf::from(path.replace("\\\\", "\\")))
}

#[cfg(unix)]
fn become_command(mut command: Command) -> Result<ExitCode> {
    use std::os::unix::process::CommandExt;
    // Returns only if it failed.
    let error = command.exec();
    Err(error).with_context(|| format!("{} cannot be started", command.get_program().display()))
}

#[cfg(not(unix))]
fn become_command(mut command: Command) -> Result<ExitCode> {
    let status = command.status().with_context(|| format!("{} cannot be started", command.get_program().display()))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_go_to_cargo_and_the_rest_to_the_node() {
        let check = |arguments: &[&str], features: Option<&str>, rest: &[&str]| {
            let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
            let (found, kept) = split_features(&arguments).unwrap();
            assert_eq!((found.as_deref(), kept), (features, rest.iter().map(ToString::to_string).collect()));
        };
        check(&[], None, &[]);
        check(
            &["--rounds", "3", "--features", "cuda", "--set", "a=b"],
            Some("cuda"),
            &["--rounds", "3", "--set", "a=b"],
        );
        check(&["--features=cuda,wgpu"], Some("cuda,wgpu"), &[]);
        assert!(split_features(&["--features".to_owned()]).is_err());
    }

    #[test]
    fn the_binary_is_where_cargo_says() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"build"},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","executable":"/x/release/convoke","fresh":true}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#
        );
        assert_eq!(executable(messages), Some(PathBuf::from("/x/release/convoke")));
        assert_eq!(executable(r#"{"executable":"C:\\x\\convoke.exe"}"#), Some(PathBuf::from("C:\\x\\convoke.exe")));
        assert_eq!(executable(r#"{"executable":null}"#), None);
    }
}
