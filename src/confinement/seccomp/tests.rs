//! The filter's program, run by an interpreter for every architecture's byte order and constants.
//! The numbers are those of the machine that runs the tests.

use super::calls;
use super::program::{ARGUMENTS, Action, Architecture, Condition, Rule, program};
use libc::{c_int, c_long, sock_filter};

const ARCHITECTURES: [Architecture; 4] =
    [Architecture::X86_64, Architecture::AARCH64, Architecture::S390X, Architecture::RISCV64];

const EPERM: Action = Action::Refuse(libc::EPERM);
const EACCES: Action = Action::Refuse(libc::EACCES);

/// The id that the filter is made for.
const SELF: u32 = 4711;

/// A system call as a filter sees it.
#[derive(Clone, Copy, Debug)]
struct Call {
    number: u32,
    audit: u32,
    arguments: [u64; ARGUMENTS],
}

impl Call {
    /// `struct seccomp_data`, byte for byte.
    fn data(&self, big_endian: bool) -> Vec<u8> {
        let half = |word: u32| if big_endian { word.to_be_bytes() } else { word.to_le_bytes() };
        let whole = |word: u64| if big_endian { word.to_be_bytes() } else { word.to_le_bytes() };
        let mut data = [half(self.number), half(self.audit)].concat();
        data.extend(whole(0x7fff_1234_5678));
        self.arguments.iter().for_each(|argument| data.extend(whole(*argument)));
        data
    }
}

/// Runs a program as the kernel would; what it does not know or may not do is a panic.
fn run(program: &[sock_filter], data: &[u8], big_endian: bool) -> u32 {
    let (mut accumulator, mut at) = (0u32, 0usize);
    loop {
        let step = program[at];
        at += 1;
        let mut jump =
            |condition: bool| at += usize::from(if condition { step.jt } else { step.jf });
        // Load word, and, jump if equal, not less, any bit; return: all with constants.
        match step.code {
            0x20 => {
                assert_eq!(step.k % 4, 0, "the kernel takes words only");
                let word = data[step.k as usize..][..4].try_into().unwrap();
                accumulator =
                    if big_endian { u32::from_be_bytes(word) } else { u32::from_le_bytes(word) };
            }
            0x54 => accumulator &= step.k,
            0x15 => jump(accumulator == step.k),
            0x35 => jump(accumulator >= step.k),
            0x45 => jump(accumulator & step.k != 0),
            0x06 => return step.k,
            code => panic!("instruction {code:#x}"),
        }
    }
}

/// What becomes of a call on an architecture whose audit value it has.
fn verdict(architecture: Architecture, number: c_long, arguments: &[u64]) -> u32 {
    let mut call = Call { number: number as u32, audit: architecture.audit, arguments: [0; 6] };
    call.arguments[..arguments.len()].copy_from_slice(arguments);
    judge(architecture, call)
}

fn judge(architecture: Architecture, call: Call) -> u32 {
    let program = program(architecture, &calls::rules(architecture, SELF, true), calls::DEFAULT);
    run(&program, &call.data(architecture.big_endian), architecture.big_endian)
}

fn on_all(number: c_long, arguments: &[u64], action: Action) {
    for architecture in ARCHITECTURES {
        let found = verdict(architecture, number, arguments);
        assert_eq!(found, action.value(), "{number} {arguments:x?} on {architecture:x?}");
    }
}

/// An argument that fulfils a condition, with all bits set that do not matter, or misses it narrowly.
fn argument(condition: &Condition, fulfil: bool) -> (u8, Vec<u64>) {
    let noise = 0xffff_ffff_0000_0000;
    match condition {
        Condition::Lacks(place, bits) if fulfil => (*place, vec![noise | u64::from(!bits)]),
        Condition::Lacks(place, bits) => (*place, single(*bits).collect()),
        Condition::Has(place, bits) if fulfil => (*place, vec![noise | u64::from(*bits)]),
        Condition::Has(place, bits) => {
            (*place, single(*bits).map(|bit| u64::from(u32::MAX) & !bit).collect())
        }
        Condition::OneOf(place, values) if fulfil => {
            (*place, values.iter().map(|value| noise | u64::from(*value)).collect())
        }
        Condition::OneOf(place, values) => {
            let near = values.iter().flat_map(|value| [value ^ 1 << 31, value ^ 1 << 4]);
            (*place, near.filter(|value| !values.contains(value)).map(u64::from).collect())
        }
        Condition::Null(place) if fulfil => (*place, vec![0]),
        Condition::Null(place) => (*place, vec![1, 1 << 31, 1 << 32, 1 << 63]),
    }
}

fn single(bits: u32) -> impl Iterator<Item = u64> {
    (0..u32::BITS).map(|bit| 1 << bit).filter(move |bit| u64::from(bits) & bit != 0)
}

#[test]
fn every_rule_is_kept_on_every_architecture() {
    for architecture in ARCHITECTURES {
        let rules = calls::rules(architecture, SELF, true);
        let program = program(architecture, &rules, calls::DEFAULT);
        assert!(program.len() < 1000, "{}", program.len());
        for Rule { number, conditions, action, otherwise } in &rules {
            let judge = |arguments: [u64; ARGUMENTS]| {
                let call = Call { number: *number, audit: architecture.audit, arguments };
                run(&program, &call.data(architecture.big_endian), architecture.big_endian)
            };
            let mut good = [u64::MAX; ARGUMENTS];
            for condition in conditions {
                let (place, values) = argument(condition, true);
                good[usize::from(place)] = values[0];
            }
            assert_eq!(judge(good), action.value(), "{number}");
            for condition in conditions {
                for (fulfil, wanted) in [(true, action), (false, otherwise)] {
                    let (place, values) = argument(condition, fulfil);
                    assert!(!values.is_empty());
                    for value in values {
                        let mut arguments = good;
                        // Two conditions may ask for the same argument.
                        let others = conditions.iter().filter(|other| *other != condition);
                        arguments[usize::from(place)] = match (fulfil, action) {
                            (true, _)
                                if others.clone().any(|other| argument(other, true).0 == place) =>
                            {
                                continue;
                            }
                            _ => value,
                        };
                        assert_eq!(
                            judge(arguments),
                            wanted.value(),
                            "{number} {condition:x?} {value:x}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn no_number_has_two_rules() {
    for architecture in ARCHITECTURES {
        let mut numbers: Vec<_> =
            calls::rules(architecture, SELF, true).into_iter().map(|rule| rule.number).collect();
        numbers.sort_unstable();
        let all = numbers.len();
        numbers.dedup();
        assert_eq!(numbers.len(), all);
    }
}

#[test]
fn what_no_rule_names_is_refused() {
    let named: Vec<_> =
        calls::rules(Architecture::AARCH64, SELF, true).iter().map(|rule| rule.number).collect();
    for number in (0..1024).chain([u32::MAX, 1 << 31]).filter(|number| !named.contains(number)) {
        on_all(number.into(), &[], EPERM);
    }
    let refused = [
        libc::SYS_socket,
        libc::SYS_socketpair,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_setsockopt,
        libc::SYS_io_uring_setup,
        libc::SYS_kill,
        libc::SYS_setresuid,
        libc::SYS_capset,
        libc::SYS_seccomp,
        libc::SYS_unlinkat,
        libc::SYS_personality,
    ];
    refused.into_iter().for_each(|number| on_all(number, &[], EPERM));
}

#[test]
fn another_architecture_kills() {
    for architecture in ARCHITECTURES {
        let others = ARCHITECTURES.iter().map(|other| other.audit).chain([0x4000_0003, 0x16, 0]);
        for audit in others.filter(|audit| *audit != architecture.audit) {
            let call = Call { number: libc::SYS_read as u32, audit, arguments: [0; 6] };
            assert_eq!(judge(architecture, call), Action::Kill.value(), "{audit:x}");
        }
    }
}

#[test]
fn the_numbers_of_x32_are_refused() {
    for number in [libc::SYS_read, libc::SYS_execve, 0] {
        let number = number | 0x4000_0000;
        assert_eq!(verdict(Architecture::X86_64, number, &[]), EPERM.value());
    }
}

#[test]
fn code_is_not_made() {
    let [read, write, execute] =
        [libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC].map(|bits| bits as u64);
    on_all(libc::SYS_mprotect, &[0, 4096, read | write], Action::Allow);
    on_all(libc::SYS_mprotect, &[0, 4096, read | execute], EPERM);
    on_all(libc::SYS_mprotect, &[execute, execute, read], Action::Allow);
    for architecture in ARCHITECTURES {
        let hidden = architecture == Architecture::S390X;
        for (protection, allowed) in [(read | write, true), (read | execute, hidden)] {
            let wanted = if allowed { Action::Allow } else { EPERM };
            let found = verdict(architecture, libc::SYS_mmap, &[0, 4096, protection]);
            assert_eq!(found, wanted.value(), "{architecture:x?}");
        }
    }
}

#[test]
fn threads_are_made_and_processes_are_not() {
    let thread = libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD | libc::CLONE_SETTLS;
    let vfork = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    for architecture in ARCHITECTURES {
        let clone = |flags: c_int| {
            let (stack, flags) = (u64::MAX, flags as u32 as u64);
            let backwards = architecture.clone_flags == 1;
            let arguments = if backwards { [stack, flags] } else { [flags, stack] };
            verdict(architecture, libc::SYS_clone, &arguments)
        };
        assert_eq!(clone(thread), Action::Allow.value());
        for process in [0, libc::SIGCHLD, vfork, thread | libc::CLONE_NEWNET] {
            assert_eq!(clone(process), Action::Kill.value(), "{process:x}");
        }
    }
    on_all(libc::SYS_clone3, &[], Action::Refuse(libc::ENOSYS));
    on_all(libc::SYS_tgkill, &[SELF.into(), 1, libc::SIGABRT as u64], Action::Allow);
    on_all(libc::SYS_tgkill, &[1, 1, libc::SIGKILL as u64], EPERM);
}

#[test]
fn files_and_programs_are_out_of_reach() {
    on_all(libc::SYS_openat, &[0, 0, libc::O_RDONLY as u64], EACCES);
    on_all(libc::SYS_openat2, &[], EACCES);
    on_all(libc::SYS_execve, &[], Action::Kill);
    on_all(libc::SYS_ptrace, &[], Action::Kill);
    on_all(libc::SYS_statx, &[5, 0, libc::AT_EMPTY_PATH as u64], Action::Allow);
    on_all(libc::SYS_statx, &[libc::AT_FDCWD as u64, 0, 0], EPERM);
}

#[test]
fn limits_are_only_read() {
    on_all(libc::SYS_prlimit64, &[0, 8, 0, 0x7fff_0000], Action::Allow);
    on_all(libc::SYS_prlimit64, &[0, 8, 0x7fff_0000_0000, 0], EPERM);
    on_all(libc::SYS_prlimit64, &[1, 8, 0, 0x7fff_0000], EPERM);
}

#[test]
fn without_io_uring_it_is_refused() {
    for architecture in ARCHITECTURES {
        let rules = calls::rules(architecture, SELF, false);
        let program = program(architecture, &rules, calls::DEFAULT);
        for number in [libc::SYS_io_uring_enter, libc::SYS_io_uring_register] {
            let call =
                Call { number: number as u32, audit: architecture.audit, arguments: [16; 6] };
            let data = call.data(architecture.big_endian);
            assert_eq!(run(&program, &data, architecture.big_endian), EPERM.value());
        }
    }
    on_all(libc::SYS_io_uring_enter, &[], Action::Allow);
    on_all(libc::SYS_io_uring_register, &[3, 16], Action::Allow);
    // A ring's restrictions, its table of files, a clone of another ring's table.
    for operation in [0, 2, 11, 30, 1 << 31 | 16] {
        on_all(libc::SYS_io_uring_register, &[3, operation], EPERM);
    }
}
