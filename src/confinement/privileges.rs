//! What the process may do because of who it is: given up.
//!
//! In this order: the bounding set while there is the capability to reduce it, then the user, then all
//! that is left. Groups, user and group are changed through the C library, which does it in all
//! threads; capabilities go thread by thread, see [`threads`].

use std::io;
use std::ptr;

use libc::{c_int, c_ulong};

use super::signals::keeping_errno;
use super::threads::{self, Thread};
use super::{ConfinementError, User};

/// The right to take capabilities out of the bounding set (include/uapi/linux/capability.h).
const CAP_SETPCAP: u32 = 8;

/// `_LINUX_CAPABILITY_VERSION_3`: two words a set.
const VERSION: u32 = 0x2008_0522;

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct Header {
    version: u32,
    pid: c_int,
}

/// Twice `struct __user_cap_data_struct`: effective, permitted, inheritable.
type Sets = [[u32; 3]; 2];

/// Becomes `user`, if any, and gives up all capabilities and the way to new ones. Gives the number
/// of threads.
pub(super) fn give_up(user: Option<User>) -> Result<usize, ConfinementError> {
    let reducible =
        |thread: &Thread| thread.bounding != 0 && thread.effective & 1 << CAP_SETPCAP != 0;
    threads::until_none(reducible, leave_bounding_set)?;
    if let Some(user) = user {
        become_user(user)?;
    }
    let held = |thread: &Thread| {
        thread.inheritable | thread.permitted | thread.effective | thread.ambient != 0
    };
    let threads = threads::until_none(held, leave_other_sets)?;
    set(libc::PR_SET_NO_NEW_PRIVS, 1, "PR_SET_NO_NEW_PRIVS")?;
    // After the change of user, which sets it to what /proc/sys/fs/suid_dumpable says. No other
    // process of that user may look into this one, and no core file tells of guests' memory.
    set(libc::PR_SET_DUMPABLE, 0, "PR_SET_DUMPABLE")?;
    Ok(threads)
}

/// Refuses mappings that are written and executed, and execution for what had none: where the kernel
/// can (Linux 6.3), which is the answer.
pub(super) fn deny_new_code() -> bool {
    set(libc::PR_SET_MDWE, libc::PR_MDWE_REFUSE_EXEC_GAIN.into(), "PR_SET_MDWE").is_ok()
}

fn set(option: c_int, value: c_ulong, call: &'static str) -> Result<(), ConfinementError> {
    // SAFETY: options whose arguments are numbers.
    // Test: `tests::the_user_is_changed_and_nothing_is_kept`.
    match unsafe { libc::prctl(option, value, 0 as c_ulong, 0 as c_ulong, 0 as c_ulong) } {
        0 => Ok(()),
        _ => Err(ConfinementError::Refused { call, source: io::Error::last_os_error() }),
    }
}

fn become_user(user: User) -> Result<(), ConfinementError> {
    let now =
        User { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
    // An ordinary user may become what it is already, and keeps its further groups.
    let already = is_wholly(user);
    // SAFETY: no list, of no length. Test: `tests::the_user_is_changed_and_nothing_is_kept`.
    let without_groups = answer(unsafe { libc::setgroups(0, ptr::null()) });
    let changed = without_groups.and_then(|()| {
        // SAFETY: plain numbers. Test: as above.
        answer(unsafe { libc::setresgid(user.gid, user.gid, user.gid) })?;
        // SAFETY: plain numbers. Test: as above.
        answer(unsafe { libc::setresuid(user.uid, user.uid, user.uid) })
    });
    match changed {
        Err(source) if !already => Err(ConfinementError::User { user, now, source }),
        _ => Ok(()),
    }
}

/// Whether real, effective and saved numbers are those of `user`.
fn is_wholly(user: User) -> bool {
    let (mut uids, mut gids) = ([u32::MAX; 3], [u32::MAX; 3]);
    let [real, effective, saved] = &mut uids;
    // SAFETY: the kernel writes three numbers. Test: `tests::the_user_is_changed_and_nothing_is_kept`.
    let known = unsafe { libc::getresuid(real, effective, saved) } == 0;
    let [real, effective, saved] = &mut gids;
    // SAFETY: as above. Test: as above.
    let known = known && unsafe { libc::getresgid(real, effective, saved) } == 0;
    known && uids == [user.uid; 3] && gids == [user.gid; 3]
}

fn answer(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// In a thread: nothing can be had by executing a file.
extern "C" fn leave_bounding_set(_signal: c_int) {
    keeping_errno(|| {
        for capability in 0..c_ulong::from(u64::BITS) {
            // SAFETY: a number; past the last capability it is refused.
            // Test: `tests::every_thread_gives_up_its_capabilities`.
            if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
                break;
            }
        }
    });
}

/// In a thread: nothing is permitted, in effect or passed on. The ambient set is part of the permitted
/// and inheritable ones and empty when they are (capabilities(7)).
extern "C" fn leave_other_sets(_signal: c_int) {
    keeping_errno(|| {
        let mut header = Header { version: VERSION, pid: 0 };
        let none: Sets = [[0; 3]; 2];
        // SAFETY: the kernel reads both, which are laid out as it wants them, and may write the
        // version. Test: `tests::every_thread_gives_up_its_capabilities`.
        unsafe { libc::syscall(libc::SYS_capset, &raw mut header, &raw const none) };
    });
}
