//! Changing in all threads what the kernel keeps for each.
//!
//! Capabilities belong to threads, and a thread can change its own only (capset(2)). So each is sent
//! a signal whose handler does it, as the C library does for setresuid(2). Whether it has been done is
//! read from /proc: the kernel's word, and nothing to share with the handlers.

use std::fs;
use std::io;
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use libc::{c_int, pid_t};

use super::ConfinementError;
use super::signals;

/// How long a thread may take. Only one that blocks the signal takes longer than a time slice.
const PATIENCE: Duration = Duration::from_secs(3);

/// Pause between two looks.
const PAUSE: Duration = Duration::from_micros(500);

/// `PF_IO_WORKER` (include/linux/sched.h): the kernel's own threads for io_uring. They take no signals
/// and work with the rights of whoever submitted an operation.
const IO_WORKER: u64 = 0x10;

/// What /proc says of a thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Thread {
    pub(super) id: pid_t,
    pub(super) name: String,
    pub(super) inheritable: u64,
    pub(super) permitted: u64,
    pub(super) effective: u64,
    pub(super) bounding: u64,
    pub(super) ambient: u64,
}

impl Thread {
    /// From /proc/PID/status (proc_pid_status(5)).
    pub(super) fn parse(id: pid_t, status: &str) -> Self {
        let mut thread = Thread { id, ..Thread::default() };
        for (key, value) in status.lines().filter_map(|line| line.split_once(":\t")) {
            let set = || u64::from_str_radix(value.trim(), 16).unwrap_or(u64::MAX);
            match key {
                "Name" => value.clone_into(&mut thread.name),
                "CapInh" => thread.inheritable = set(),
                "CapPrm" => thread.permitted = set(),
                "CapEff" => thread.effective = set(),
                "CapBnd" => thread.bounding = set(),
                "CapAmb" => thread.ambient = set(),
                _ => {}
            }
        }
        thread
    }
}

/// Runs `act`, a signal handler, in every thread that is `due`, until none is. Gives the number of
/// threads that were looked at last.
pub(super) fn until_none(
    due: impl Fn(&Thread) -> bool,
    act: extern "C" fn(c_int),
) -> Result<usize, ConfinementError> {
    let mut signal = None;
    let outcome = ask(&due, act, &mut signal);
    if let Some(signal) = signal {
        // Also discards what is still pending for a thread (signal(7)).
        signals::ignore(signal).map_err(|source| refused("sigaction", source))?;
    }
    outcome
}

fn ask(
    due: &impl Fn(&Thread) -> bool,
    act: extern "C" fn(c_int),
    signal: &mut Option<c_int>,
) -> Result<usize, ConfinementError> {
    let deadline = Instant::now() + PATIENCE;
    let mut asked: Vec<pid_t> = Vec::new();
    let mut quiet = false;
    loop {
        let threads = all().map_err(ConfinementError::Proc)?;
        let mut left = threads.iter().filter(|thread| due(thread)).peekable();
        let Some(first) = left.peek() else {
            // A thread that was due until after it was listed may have made another meanwhile, which
            // was not listed. That one is there by now, and all that were listed make no more.
            if quiet {
                return Ok(threads.len());
            }
            quiet = true;
            continue;
        };
        quiet = false;
        let number = match *signal {
            Some(number) => number,
            None => *signal.insert(free_signal(act)?),
        };
        if Instant::now() > deadline {
            let (id, name) = (first.id, first.name.clone());
            return Err(ConfinementError::Thread { id, name, limit: PATIENCE, signal: number });
        }
        for thread in left {
            if !asked.contains(&thread.id) && signals::send(process::id(), thread.id, number) {
                asked.push(thread.id);
            }
        }
        thread::sleep(PAUSE);
    }
}

/// Gives a signal that nobody uses the handler `act`.
fn free_signal(act: extern "C" fn(c_int)) -> Result<c_int, ConfinementError> {
    let (first, last) = (libc::SIGRTMIN(), libc::SIGRTMAX());
    let signal = (first..=last).rev().find(|signal| signals::is_free(*signal));
    let signal = signal.ok_or(ConfinementError::NoSignal { first, last })?;
    signals::handle(signal, act).map_err(|source| refused("sigaction", source))?;
    Ok(signal)
}

fn refused(call: &'static str, source: io::Error) -> ConfinementError {
    ConfinementError::Refused { call, source }
}

/// All threads of this process but the kernel's own and those that have ended.
fn all() -> io::Result<Vec<Thread>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir("/proc/self/task")? {
        let path = entry?.path();
        let id = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        let read = || -> io::Result<(String, String)> {
            Ok((fs::read_to_string(path.join("status"))?, fs::read_to_string(path.join("stat"))?))
        };
        match read() {
            Ok((status, stat)) if is_ours(&stat) => {
                threads.push(Thread::parse(id.unwrap_or_default(), &status));
            }
            Ok(_) => {}
            // It ended in between.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(threads)
}

/// Whether a thread runs code of ours, by its /proc/PID/stat (proc_pid_stat(5)): the name stands in
/// parentheses and may have some; then come the state and, six fields on, the flags.
fn is_ours(stat: &str) -> bool {
    let mut fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
    let ended = matches!(fields.next(), Some("Z" | "X" | "x"));
    let flags = fields.nth(5).and_then(|flags| flags.parse::<u64>().ok()).unwrap_or(0);
    !ended && flags & IO_WORKER == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_read() {
        let status = "Name:\tccw-0\nCapInh:\t0000000000000001\nCapPrm:\t000001ffffffffff\n\
            CapEff:\t0000000000000100\nCapBnd:\t0000000000000002\nCapAmb:\t0000000000000000\nX:\t1\n";
        let thread = Thread {
            id: 7,
            name: "ccw-0".to_owned(),
            inheritable: 1,
            permitted: (1 << 41) - 1,
            effective: 0x100,
            bounding: 2,
            ambient: 0,
        };
        assert_eq!(Thread::parse(7, status), thread);
    }

    #[test]
    fn the_kernels_threads_and_dead_ones_are_left_alone() {
        assert!(is_ours("12 (a) Z) 1) S 1 2 3 4 5 4194368 0"));
        assert!(!is_ours("12 (iou-wrk-11) S 1 2 3 4 5 4194384 0"));
        assert!(!is_ours("12 (main) Z 1 2 3 4 5 4194368 0"));
    }

    #[test]
    fn this_thread_is_among_all() {
        let name = thread::current().name().map(|name| name.chars().take(15).collect::<String>());
        let threads = all().unwrap();
        assert!(threads.len() >= 2 || name.as_deref() == Some("main"));
        assert!(threads.iter().all(|thread| thread.id > 0 && !thread.name.is_empty()));
    }
}
