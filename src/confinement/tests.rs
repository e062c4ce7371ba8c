//! What only the inside can see: what threads are left with, before the filter hides it.

use super::alone::{alone, killed_by, passed};
use super::threads::Thread;
use super::*;
use std::fs;
use std::io;
use std::sync::mpsc;
use std::thread;

/// The user "nobody".
const NOBODY: User = User { uid: 65_534, gid: 65_534 };

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// What /proc says of each thread.
fn statuses() -> Vec<(i32, String)> {
    fs::read_dir("/proc/self/task")
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let id = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
            (id, fs::read_to_string(path.join("status")).unwrap())
        })
        .collect()
}

fn field<'a>(status: &'a str, key: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim()
}

/// Threads that wait for the end of the test.
fn idle_threads(count: usize) -> mpsc::Sender<mpsc::Receiver<()>> {
    let (ending, ended) = mpsc::channel::<mpsc::Receiver<()>>();
    let ended = std::sync::Arc::new(Mutex::new(ended));
    for _ in 0..count {
        let ended = ended.clone();
        // One waits for the channel, the others for the lock.
        thread::spawn(move || ended.lock().recv().is_err());
    }
    ending
}

#[test]
fn every_thread_gives_up_its_capabilities() {
    let name = "confinement::tests::every_thread_gives_up_its_capabilities";
    let output = alone(name, || {
        if !is_root() {
            return Err("an ordinary user has no capabilities to give up".to_owned());
        }
        let _idle = idle_threads(5);
        let threads = privileges::give_up(None).map_err(|error| error.to_string())?;
        assert!(threads >= 6, "{threads}");
        thread::spawn(|| {
            for (id, status) in statuses() {
                let left = Thread::parse(id, &status);
                let Thread { inheritable, permitted, effective, bounding, ambient, .. } = left;
                let left = inheritable | permitted | effective | bounding | ambient;
                assert_eq!(left, 0, "{status}");
            }
        })
        .join()
        .unwrap();
        // Root in name only: this would change nothing if it were allowed.
        assert!(is_root());
        let denied = std::os::unix::fs::chroot("/").unwrap_err();
        assert_eq!(denied.raw_os_error(), Some(libc::EPERM));
        Ok(())
    });
    output.as_ref().map(passed);
}

#[test]
fn the_user_is_changed_and_nothing_is_kept() {
    let name = "confinement::tests::the_user_is_changed_and_nothing_is_kept";
    let output = alone(name, || {
        if !is_root() {
            return Err("only root becomes another user".to_owned());
        }
        let _idle = idle_threads(3);
        privileges::give_up(Some(NOBODY)).map_err(|error| error.to_string())?;
        for (id, status) in statuses() {
            assert_eq!(field(&status, "Uid:"), ["65534"; 4].join("\t"));
            assert_eq!(field(&status, "Gid:"), ["65534"; 4].join("\t"));
            assert_eq!(field(&status, "Groups:"), "");
            let left = Thread::parse(id, &status);
            assert_eq!(left.permitted | left.effective | left.bounding | left.inheritable, 0);
        }
        let own = fs::read_to_string("/proc/thread-self/status").unwrap();
        assert_eq!(field(&own, "NoNewPrivs:"), "1");
        // SAFETY: no argument. Test: this one.
        assert_eq!(unsafe { libc::prctl(libc::PR_GET_DUMPABLE) }, 0);
        // The process still sees its own descriptors.
        fs::read_link("/proc/self/fd/0").unwrap();
        // Again it is what it is already, and nothing else.
        privileges::give_up(Some(NOBODY)).unwrap();
        let error = privileges::give_up(Some(User { uid: 1000, gid: 100 })).unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with("cannot become user 1000:100: "), "{error}");
        assert!(error.contains("runs as 65534:65534: start it as root"), "{error}");
        Ok(())
    });
    output.as_ref().map(passed);
}

#[test]
fn an_ordinary_user_stays_what_it_is() {
    let output = alone("confinement::tests::an_ordinary_user_stays_what_it_is", || {
        if is_root() {
            privileges::give_up(Some(NOBODY)).map_err(|error| error.to_string())?;
        }
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        privileges::give_up(None).unwrap();
        privileges::give_up(Some(User { uid, gid })).unwrap();
        let error = privileges::give_up(Some(User { uid: uid + 1, gid })).unwrap_err();
        assert!(matches!(error, ConfinementError::User { .. }), "{error:?}");
        Ok(())
    });
    output.as_ref().map(passed);
}

#[test]
fn a_thread_that_does_not_answer_is_named() {
    let output = alone("confinement::tests::a_thread_that_does_not_answer_is_named", || {
        if !is_root() {
            return Err("an ordinary user's threads have nothing to give up".to_owned());
        }
        let (ready, deaf) = mpsc::channel();
        let thread = thread::Builder::new().name("deaf".to_owned()).spawn(move || {
            block_all_signals();
            ready.send(()).unwrap();
            loop {
                thread::park();
            }
        });
        deaf.recv().unwrap();
        let error = privileges::give_up(None).unwrap_err().to_string();
        assert!(error.contains("(deaf) still had its privileges after 3s"), "{error}");
        assert!(error.contains("let it not block signal"), "{error}");
        drop(thread);
        Ok(())
    });
    output.as_ref().map(passed);
}

fn block_all_signals() {
    // SAFETY: the set is filled before it is used. Test: `a_thread_that_does_not_answer_is_named`.
    unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &all, std::ptr::null_mut());
    }
}

#[test]
fn a_thread_with_a_filter_of_its_own_is_named() {
    let output = alone("confinement::tests::a_thread_with_a_filter_of_its_own_is_named", || {
        let filter = supported()?;
        let (ready, filtered) = mpsc::channel();
        thread::spawn(move || {
            ready.send(allow_all_here()).unwrap();
            loop {
                thread::park();
            }
        });
        filtered.recv().unwrap().unwrap();
        privileges::give_up(None).unwrap();
        let error = filter.install().unwrap_err();
        assert!(matches!(error, ConfinementError::OwnFilter(1..)), "{error:?}");
        Ok(())
    });
    output.as_ref().map(passed);
}

/// A filter, where the kernel has them.
fn supported() -> Result<seccomp::Filter, String> {
    seccomp::Filter::new(false).map_err(|error| error.to_string())
}

fn allow_all_here() -> io::Result<()> {
    let mut all = libc::sock_filter { code: 6, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW };
    let program = libc::sock_fprog { len: 1, filter: &mut all };
    // SAFETY: the kernel copies one instruction.
    // Test: `a_thread_with_a_filter_of_its_own_is_named`.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[test]
fn memory_that_is_cut_short_is_survived_under_the_filter() {
    let name = "confinement::tests::memory_that_is_cut_short_is_survived_under_the_filter";
    let output = alone(name, || {
        supported()?;
        truncation::install().unwrap();
        Confinement::new().enter().map_err(|error| error.to_string())?;
        truncation::tests::cut_and_touch();
        // What is not guarded ends the process as ever.
        // SAFETY: a number. Test: this one.
        unsafe { libc::raise(libc::SIGBUS) };
        unreachable!("it has died");
    });
    if let Some(output) = output {
        killed_by(&output, libc::SIGBUS);
        assert!(String::from_utf8_lossy(&output.stdout).contains("zeros under the filter"));
    }
}
