//! What a device process may still ask of the kernel once all its files and sockets are open.
//!
//! Whoever has taken over the process can do no more than this: move data through descriptors that
//! are there, arrange its own memory, make threads, tell the time, end. No name of a file, no new
//! socket, no other process, no code that was not there before.

use libc::{c_int, c_long};

use super::program::{Action, Architecture, Condition, Rule};

/// Of `enum io_uring_register_op`: frames come to a ring's table and go.
const IORING_REGISTER_BUFFERS_UPDATE: u32 = 16;

/// kexec_file_load(2), which libc does not name everywhere.
const KEXEC_FILE_LOAD: c_long = if cfg!(target_arch = "x86_64") {
    320
} else if cfg!(target_arch = "s390x") {
    381
} else {
    // include/uapi/asm-generic/unistd.h
    294
};

/// Calls that are answered whatever their arguments, the frequent ones first: kernels before 5.11
/// go through the list each time.
const ALLOWED: &[c_long] = &[
    // Transfers and waiting.
    libc::SYS_epoll_pwait,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_futex,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_ppoll,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_epoll_ctl,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    // Sockets that listen or are connected already.
    libc::SYS_accept4,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_shutdown,
    // Files that are open already.
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_lseek,
    libc::SYS_readlinkat,
    // What a client may need that connects later: memory, a runtime, doorbells. They come from nowhere
    // and lead nowhere.
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    libc::SYS_eventfd2,
    libc::SYS_epoll_create1,
    // Signals of eventfds, by a context that is made before (`src/backend/bell.rs`).
    libc::SYS_io_submit,
    libc::SYS_io_getevents,
    libc::SYS_io_destroy,
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mlock,
    libc::SYS_mremap,
    libc::SYS_munlock,
    libc::SYS_munmap,
    // Threads and signals of our own.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_getrandom,
];

/// The same under older names, which younger architectures do not have.
#[cfg(any(target_arch = "x86_64", target_arch = "s390x"))]
const ALLOWED_BY_OLD_NAMES: &[c_long] = &[libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_readlink];
#[cfg(not(any(target_arch = "x86_64", target_arch = "s390x")))]
const ALLOWED_BY_OLD_NAMES: &[c_long] = &[];

/// s390 returns this way from handlers without SA_SIGINFO (`setup_frame`, arch/s390/kernel/signal.c).
#[cfg(target_arch = "s390x")]
const ALLOWED_ON_S390X: &[c_long] = &[libc::SYS_sigreturn];
#[cfg(not(target_arch = "s390x"))]
const ALLOWED_ON_S390X: &[c_long] = &[];

/// Nothing opens another file. EACCES, which whoever opens one is prepared for: the standard library
/// and the C library look at files of /proc and /sys and do without.
const OPENING: &[c_long] = &[libc::SYS_openat, libc::SYS_openat2];
#[cfg(any(target_arch = "x86_64", target_arch = "s390x"))]
const OPENING_BY_OLD_NAMES: &[c_long] = &[libc::SYS_open, libc::SYS_creat];
#[cfg(not(any(target_arch = "x86_64", target_arch = "s390x")))]
const OPENING_BY_OLD_NAMES: &[c_long] = &[];

/// Nothing in this process ever makes these. Who does has taken it over and gets no second try.
const FATAL: &[c_long] = &[
    // Other programs and other processes.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    // Other worlds.
    libc::SYS_chroot,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_setns,
    libc::SYS_umount2,
    libc::SYS_unshare,
    // Another kernel, or this one changed.
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    KEXEC_FILE_LOAD,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    // Where kernels were broken from.
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_keyctl,
    libc::SYS_perf_event_open,
    libc::SYS_request_key,
    libc::SYS_userfaultfd,
];
#[cfg(any(target_arch = "x86_64", target_arch = "s390x"))]
const FATAL_BY_OLD_NAMES: &[c_long] = &[libc::SYS_fork, libc::SYS_vfork];
#[cfg(not(any(target_arch = "x86_64", target_arch = "s390x")))]
const FATAL_BY_OLD_NAMES: &[c_long] = &[];

/// What becomes of calls that are named nowhere here. An errno and not death: what a library tries
/// in the next version, it can do without, and the log shows it.
pub(super) const DEFAULT: Action = REFUSED;

const REFUSED: Action = Action::Refuse(libc::EPERM);

/// All rules, for process `id` on `architecture`.
pub(super) fn rules(architecture: Architecture, id: u32, io_uring: bool) -> Vec<Rule> {
    let mut rules = Vec::new();
    if io_uring {
        rules.extend([
            plain(libc::SYS_io_uring_enter, Action::Allow),
            only(
                libc::SYS_io_uring_register,
                [Condition::OneOf(1, vec![IORING_REGISTER_BUFFERS_UPDATE])],
            ),
        ]);
    }
    let groups: [(&[&[c_long]], Action); 3] = [
        (&[ALLOWED_BY_OLD_NAMES, ALLOWED, ALLOWED_ON_S390X], Action::Allow),
        (&[OPENING, OPENING_BY_OLD_NAMES], Action::Refuse(libc::EACCES)),
        (&[FATAL, FATAL_BY_OLD_NAMES], Action::Kill),
    ];
    for (lists, action) in groups {
        rules.extend(lists.iter().copied().flatten().map(|number| plain(*number, action)));
    }

    // No new code: not mapped, and not made from data.
    let no_code = |argument| Condition::Lacks(argument, libc::PROT_EXEC as u32);
    rules.push(only(libc::SYS_mmap, architecture.mmap_protection.map(no_code)));
    rules.push(only(libc::SYS_mprotect, [no_code(2)]));

    // Threads, and neither processes nor namespaces. The flags of clone3 are in memory; the C
    // library goes back to clone where there is none.
    let flags = architecture.clone_flags;
    rules.push(Rule {
        otherwise: Action::Kill,
        ..only(
            libc::SYS_clone,
            [
                Condition::Has(flags, libc::CLONE_THREAD as u32),
                Condition::Lacks(flags, NAMESPACES as u32),
            ],
        )
    });
    rules.push(plain(libc::SYS_clone3, Action::Refuse(libc::ENOSYS)));
    rules.push(only(libc::SYS_prctl, [one_of(0, &[libc::PR_SET_NAME, libc::PR_GET_NAME])]));
    // abort(3) and raise(3).
    rules.push(only(libc::SYS_tgkill, [Condition::OneOf(0, vec![id])]));
    // Limits are looked at and stay as they are.
    rules.push(only(libc::SYS_prlimit64, [Condition::OneOf(0, vec![0, id]), Condition::Null(2)]));

    // Descriptors: nothing that sends signals, takes leases or seals.
    rules.push(only(
        libc::SYS_fcntl,
        [one_of(
            1,
            &[
                libc::F_DUPFD,
                libc::F_DUPFD_CLOEXEC,
                libc::F_GETFD,
                libc::F_SETFD,
                libc::F_GETFL,
                libc::F_SETFL,
                libc::F_GET_SEALS,
            ],
        )],
    ));
    // The last answers ENOTTY for what is no terminal: isatty(3).
    let requests = [libc::FIONBIO, libc::FIONREAD, libc::FIOCLEX, libc::TCGETS];
    let requests = requests.iter().map(|request| *request as u32).collect();
    rules.push(only(libc::SYS_ioctl, [Condition::OneOf(1, requests)]));
    // Meant for descriptors, with an empty name. That the name is empty cannot be seen here; it gives
    // away no more than that a file is there.
    let empty = libc::AT_EMPTY_PATH as u32;
    rules.push(only(libc::SYS_statx, [Condition::Has(2, empty)]));
    rules.push(only(libc::SYS_newfstatat, [Condition::Has(3, empty)]));
    rules
}

const NAMESPACES: c_int = libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS;

fn plain(number: c_long, action: Action) -> Rule {
    Rule { number: number as u32, conditions: Vec::new(), action, otherwise: action }
}

/// Allowed under conditions, else refused.
fn only(number: c_long, conditions: impl IntoIterator<Item = Condition>) -> Rule {
    let conditions = conditions.into_iter().collect();
    Rule { number: number as u32, conditions, action: Action::Allow, otherwise: REFUSED }
}

fn one_of(argument: u8, values: &[c_int]) -> Condition {
    Condition::OneOf(argument, values.iter().map(|value| *value as u32).collect())
}
