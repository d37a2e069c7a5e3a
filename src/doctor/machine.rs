//! The machine: its clock, its limits, and the data directory.

use super::named;
use crate::app::open_files_for;
use crate::credentials::{Credentials, DataDir};
use crate::domain::finding::Finding;
use crate::domain::time::Timestamp;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::statvfs;
use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// 2026-01-01: no clock that is right says less.
const EARLIEST: i64 = 1_767_225_600_000;
/// The write-ahead log alone takes 64 MiB.
const LEAST_FREE: u64 = 128 << 20;
const LITTLE_FREE: u64 = 1 << 30;

pub(super) fn clock(now: Timestamp) -> Option<Finding> {
    let wrong =
        || Finding::error("clock", format!("it says {now}"), "set it, and keep it set (NTP): tokens expire by it");
    (now.as_ms() < EARLIEST).then(wrong)
}

/// By the limit of the herenow that works with the data directory, if it can be looked at; else by that of this command.
pub(super) fn open_files(streams: usize, data_dir: &Path) -> Option<Finding> {
    if let Some((pid, hard)) = DataDir::holder(data_dir).and_then(|pid| Some((pid, limit_of(pid)?))) {
        return Some(enough_files(hard, &format!("in the herenow process {pid}"), streams));
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    Some(enough_files(hard, "in this shell, whose limit need not be the service's", streams))
}

/// The hard limit of open files of another process (proc_pid_limits(5)).
fn limit_of(pid: u32) -> Option<u64> {
    hard_limit(&fs::read_to_string(format!("/proc/{pid}/limits")).ok()?)
}

fn hard_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let hard = line.split_whitespace().nth(1)?;
    if hard == "unlimited" { Some(u64::MAX) } else { hard.parse().ok() }
}

fn enough_files(hard: u64, whose: &str, streams: usize) -> Finding {
    let wanted = open_files_for(streams);
    let found = format!("{hard} may be open {whose} (the hard limit); `stream.max` = {streams} needs {wanted}");
    if hard < wanted {
        let advice = "raise the limit where herenow is started (`LimitNOFILE=`, `ulimit -Hn`), or lower `stream.max`";
        Finding::warning("open files", found, advice)
    } else {
        Finding::well("open files", found)
    }
}

/// What there is to say, and whether a process works with it.
pub(super) fn data_dir(dir: &Path) -> (Vec<Finding>, bool) {
    let shown = named(dir);
    let metadata = match fs::metadata(dir) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let found = format!("{shown} is not there yet: the first start makes it");
            return (vec![Finding::well("data_dir", found)], false);
        }
        Err(e) => return (vec![unreadable(&shown, &e)], false),
    };
    let mut findings = Vec::new();
    let in_use = DataDir::is_in_use(dir).unwrap_or_else(|error| {
        findings.push(unreadable(&shown, &error));
        false
    });
    let user = if in_use { "a herenow process is using it" } else { "no herenow process is using it" };
    findings.push(Finding::well("data_dir", format!("{shown}: {user}")));
    findings.extend(permissions(dir, &metadata));
    findings.extend(
        Credentials::read(dir)
            .err()
            .map(|error| Finding::error("data_dir", error.to_string(), "herenow does not start before this is mended")),
    );
    findings.extend(space(dir));
    (findings, in_use)
}

fn unreadable(shown: &str, error: &dyn std::error::Error) -> Finding {
    Finding::error("data_dir", format!("{shown}: {error}"), "run this as the user that herenow runs as")
}

fn permissions(dir: &Path, metadata: &Metadata) -> Vec<Finding> {
    let shown = named(dir);
    let mut findings = Vec::new();
    if metadata.permissions().mode() & 0o077 != 0 {
        let found = format!("{shown} is open to others than its owner, and holds what users wrote");
        findings.push(Finding::warning("data_dir", found, format!("run `chmod 700 {shown}`")));
    }
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let foreign = |entry: &fs::DirEntry| entry.metadata().is_ok_and(|m| m.uid() != metadata.uid());
    for entry in entries.filter(foreign) {
        let path = entry.path();
        let found = format!("{} belongs to another user than its directory", path.display());
        let advice = format!("run `chown --reference={shown} {}`", path.display());
        findings.push(Finding::warning("data_dir", found, advice));
    }
    findings
}

fn space(dir: &Path) -> Option<Finding> {
    let stat = statvfs(dir).ok()?;
    let free = stat.blocks_available().saturating_mul(stat.fragment_size());
    let found = format!("{} MiB are free for it", free >> 20);
    let advice = "make room: with a full disk persisted sends are refused";
    Some(if free < LEAST_FREE {
        Finding::error("disk", found, advice)
    } else if free < LITTLE_FREE {
        Finding::warning("disk", found, advice)
    } else {
        Finding::well("disk", found)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::finding::Level;

    fn levels(dir: &Path) -> Vec<(Level, String)> {
        data_dir(dir).0.into_iter().filter(|f| f.about != "disk").map(|f| (f.level, f.found)).collect()
    }

    #[test]
    fn a_directory_is_told_of_as_it_is_and_never_made() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("data");
        assert!(levels(&dir)[0].1.ends_with("is not there yet: the first start makes it"));
        assert!(!dir.exists());
        let held = DataDir::open(&dir).unwrap();
        held.credentials().unwrap();
        assert!(data_dir(&dir).1);
        assert_eq!(levels(&dir), [(Level::Well, format!("{}: a herenow process is using it", dir.display()))]);
        drop(held);
        assert!(!data_dir(&dir).1);
        assert!(DataDir::open(&dir).is_ok(), "to look takes no lock");
    }

    #[test]
    fn what_others_can_read_is_told_with_the_command_that_helps() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("data");
        DataDir::open(&dir).unwrap().credentials().unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(dir.join("credentials.toml"), fs::Permissions::from_mode(0o644)).unwrap();
        let (findings, _) = data_dir(&dir);
        let told: Vec<_> = findings.iter().filter_map(|f| Some((f.level, f.advice.clone()?))).collect();
        assert_eq!(told[0], (Level::Warning, format!("run `chmod 700 {}`", dir.display())));
        assert_eq!(told[1].0, Level::Error);
    }

    #[test]
    fn a_clock_that_was_never_set_is_noticed() {
        assert_eq!(clock(Timestamp::from_ms(0)).unwrap().level, Level::Error);
        assert_eq!(clock(Timestamp::now()), None);
    }

    #[test]
    fn more_streams_than_files_may_be_open_is_a_warning() {
        let needed = open_files_for(5);
        assert_eq!(enough_files(needed, "here", 5).level, Level::Well);
        assert_eq!(enough_files(needed, "here", 6).level, Level::Warning);
    }

    #[test]
    fn the_limit_is_that_of_the_process_that_holds_the_directory() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("data");
        assert!(open_files(5, &dir).unwrap().found.contains("in this shell"));
        let held = DataDir::open(&dir).unwrap();
        let found = open_files(5, &dir).unwrap().found;
        assert!(found.contains(&format!("in the herenow process {} ", std::process::id())), "{found}");
        drop(held);
        assert!(open_files(5, &dir).unwrap().found.contains("in this shell"));
        let line = |hard: &str| format!("Max processes  1  2  processes\nMax open files  1024  {hard}  files\n");
        assert_eq!(["4096", "unlimited", "?"].map(|hard| hard_limit(&line(hard))), [Some(4096), Some(u64::MAX), None]);
    }
}
