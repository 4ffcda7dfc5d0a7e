//! Names of files and folders: one says what is inside, or the thing inside has no single purpose.

use super::Finding;

const BANNED: [&str; 10] =
    ["util", "utils", "common", "helper", "helpers", "manager", "handler", "data", "info", "misc"];

/// The data set is the thing itself here, not a word for "anything".
const ALLOWED: [&str; 1] = ["actors/data"];

/// The rule of this module.
pub fn check(path: &str) -> Option<Finding> {
    let stem = path.strip_suffix(".rs").unwrap_or(path);
    let mut prefix = String::new();
    for part in stem.split('/') {
        prefix = if prefix.is_empty() { part.to_owned() } else { format!("{prefix}/{part}") };
        let last_word = part.rsplit('_').next().unwrap_or(part);
        if BANNED.contains(&last_word) && !ALLOWED.contains(&prefix.as_str()) {
            return Some(Finding::new(path, 1, format!("`{part}` names no purpose: say what is inside")));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_purpose_is_refused() {
        for path in ["src/utils.rs", "actors/common/mod.rs", "actors/peer_manager.rs", "src/data/x.rs", "src/info.rs"] {
            assert!(check(path).is_some(), "{path}");
        }
        for path in ["actors/data/mod.rs", "actors/database.rs", "src/payload/record.rs"] {
            assert!(check(path).is_none(), "{path}");
        }
    }
}
