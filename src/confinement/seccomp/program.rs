//! Rules about system calls, made into the classic BPF program that the kernel runs before each.
//!
//! Every rule is a piece by itself that ends in a verdict: jumps stay short, and the order of rules
//! matters only where a number stands twice. Rules that look at the number alone load nothing else,
//! so the kernel finds out once that their verdict never changes and skips the program from then on
//! (`seccomp_is_const_allow` in kernel/seccomp.c, since Linux 5.11).

use libc::sock_filter;

/// What distinguishes one architecture's `struct seccomp_data` from another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::confinement) struct Architecture {
    /// `AUDIT_ARCH_*` of include/uapi/linux/audit.h: ELF machine, 64 bits, byte order.
    pub(super) audit: u32,
    pub(super) big_endian: bool,
    /// Numbers from here on belong to another ABI with the same audit value: x32.
    pub(super) foreign: Option<u32>,
    /// The argument of clone(2) that has its flags: 1 where CONFIG_CLONE_BACKWARDS2 is set.
    pub(super) clone_flags: u8,
    /// The argument of mmap(2) that has the protection. s390x passes all six in memory
    /// (`sys_old_mmap`), where no filter can look.
    pub(super) mmap_protection: Option<u8>,
}

impl Architecture {
    #[cfg_attr(not(any(test, target_arch = "x86_64")), allow(dead_code))]
    pub(super) const X86_64: Self =
        Architecture { audit: 0xc000_003e, foreign: Some(0x4000_0000), ..Self::AARCH64 };
    pub(super) const AARCH64: Self = Architecture {
        audit: 0xc000_00b7,
        big_endian: false,
        foreign: None,
        clone_flags: 0,
        mmap_protection: Some(2),
    };
    #[cfg_attr(not(any(test, target_arch = "riscv64")), allow(dead_code))]
    pub(super) const RISCV64: Self = Architecture { audit: 0xc000_00f3, ..Self::AARCH64 };
    #[cfg_attr(not(any(test, target_arch = "s390x")), allow(dead_code))]
    pub(super) const S390X: Self = Architecture {
        audit: 0x8000_0016,
        big_endian: true,
        clone_flags: 1,
        mmap_protection: None,
        ..Self::AARCH64
    };

    /// The one that this is built for, where its system calls are known here.
    #[cfg(target_arch = "x86_64")]
    pub(super) const HOST: Option<Self> = Some(Self::X86_64);
    #[cfg(target_arch = "aarch64")]
    pub(super) const HOST: Option<Self> = Some(Self::AARCH64);
    #[cfg(target_arch = "s390x")]
    pub(super) const HOST: Option<Self> = Some(Self::S390X);
    #[cfg(target_arch = "riscv64")]
    pub(super) const HOST: Option<Self> = Some(Self::RISCV64);
    #[cfg(not(any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "s390x",
        target_arch = "riscv64"
    )))]
    pub(super) const HOST: Option<Self> = None;
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Allow,
    /// It fails with this errno and has no effect.
    Refuse(i32),
    /// The whole process dies with SIGSYS, and the kernel's audit log says so.
    Kill,
}

impl Action {
    pub(super) fn value(self) -> u32 {
        match self {
            Action::Allow => libc::SECCOMP_RET_ALLOW,
            Action::Refuse(errno) => libc::SECCOMP_RET_ERRNO | errno as u32,
            Action::Kill => libc::SECCOMP_RET_KILL_PROCESS,
        }
    }
}

/// What is asked of one argument. All but `Null` look at its low 32 bits, which is all that the kernel
/// uses of an `int` and where all flags stand that are asked for here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// None of these bits is set.
    Lacks(u8, u32),
    /// All of these bits are set.
    Has(u8, u32),
    /// It is one of these.
    OneOf(u8, Vec<u32>),
    /// All 64 bits are zero.
    Null(u8),
}

/// What becomes of the call with one number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) number: u32,
    /// If all of them hold, then `action`, else `otherwise`.
    pub(super) conditions: Vec<Condition>,
    pub(super) action: Action,
    pub(super) otherwise: Action,
}

/// Most arguments of a call.
#[cfg(test)]
pub(super) const ARGUMENTS: usize = 6;

/// Places in `struct seccomp_data` (include/uapi/linux/seccomp.h), in bytes.
const NUMBER: u32 = 0;
const AUDIT: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

/// The program. Calls of another architecture kill, and so `default` says what becomes of numbers
/// of this one that no rule names.
pub(super) fn program(
    architecture: Architecture,
    rules: &[Rule],
    default: Action,
) -> Vec<sock_filter> {
    let mut program = vec![load(AUDIT)];
    program.extend([jump_if(libc::BPF_JEQ, architecture.audit, 1, 0), end(Action::Kill)]);
    program.push(load(NUMBER));
    if let Some(first) = architecture.foreign {
        program.extend([jump_if(libc::BPF_JGE, first, 0, 1), end(default)]);
    }
    for rule in rules {
        let mut verdict = Vec::new();
        for condition in &rule.conditions {
            check(&mut verdict, architecture, condition, rule.otherwise);
        }
        verdict.push(end(rule.action));
        let past = u8::try_from(verdict.len()).expect("a rule is a few dozen instructions");
        program.push(jump_if(libc::BPF_JEQ, rule.number, 0, past));
        program.append(&mut verdict);
    }
    program.push(end(default));
    program
}

/// Goes on behind itself where `condition` holds.
fn check(
    program: &mut Vec<sock_filter>,
    architecture: Architecture,
    condition: &Condition,
    otherwise: Action,
) {
    let word = |argument: u8, second: bool| {
        load(FIRST_ARGUMENT + 8 * u32::from(argument) + if second { 4 } else { 0 })
    };
    let low = |argument| word(argument, architecture.big_endian);
    match condition {
        Condition::Lacks(argument, bits) => {
            program.extend([low(*argument), jump_if(libc::BPF_JSET, *bits, 0, 1)]);
        }
        Condition::Has(argument, bits) => {
            let mask = step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, *bits, 0, 0);
            program.extend([low(*argument), mask, jump_if(libc::BPF_JEQ, *bits, 1, 0)]);
        }
        Condition::OneOf(argument, values) => {
            program.push(low(*argument));
            for (index, value) in values.iter().enumerate() {
                let past = u8::try_from(values.len() - index).expect("a rule has a few values");
                program.push(jump_if(libc::BPF_JEQ, *value, past, 0));
            }
        }
        Condition::Null(argument) => {
            program.extend([word(*argument, false), jump_if(libc::BPF_JEQ, 0, 1, 0)]);
            program.push(end(otherwise));
            program.extend([word(*argument, true), jump_if(libc::BPF_JEQ, 0, 1, 0)]);
        }
    }
    program.push(end(otherwise));
}

fn load(place: u32) -> sock_filter {
    step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, place, 0, 0)
}

fn jump_if(comparison: u32, value: u32, then: u8, or: u8) -> sock_filter {
    step(libc::BPF_JMP | comparison | libc::BPF_K, value, then, or)
}

fn end(action: Action) -> sock_filter {
    step(libc::BPF_RET | libc::BPF_K, action.value(), 0, 0)
}

fn step(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}
