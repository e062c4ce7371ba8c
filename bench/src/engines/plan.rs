//! A job's options, checked against each other before anything is set up.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use vfio_ccw::engine::MAX_TRANSFER;
use vfio_ccw::{Mode, WaitStrategy};
use vfio_ccw_load::job_file::{JobSpec, Rw};
use vfio_ccw_load::units::Bytes;

use super::{EngineKind, Shape};

/// Most guest memory of a job.
const MOST_MEMORY: u64 = 8 << 30;

/// What a job is, in this program's terms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan<'s> {
    /// The job.
    pub spec: &'s JobSpec,
    /// What it drives.
    pub kind: EngineKind,
    /// What its programs look like.
    pub program: ProgramKind,
    /// When pages are pinned.
    pub mode: Mode,
    /// How shards wait for work.
    pub wait: WaitStrategy,
}

/// What programs look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgramKind {
    /// Transfers of a disk.
    Disk,
    /// One of these.
    Shape(Shape),
}

impl ProgramKind {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            ProgramKind::Disk => "disk",
            ProgramKind::Shape(shape) => shape.name(),
        }
    }
}

/// An option that cannot be, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Line of the job file; none where it was not in one.
    pub line: Option<usize>,
    /// What is wrong, and the remedy.
    pub reason: String,
}

impl std::error::Error for Refused {}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        f.write_str(&self.reason)
    }
}

impl Refused {
    /// `option` of `spec` cannot be.
    pub fn new(spec: &JobSpec, option: &str, reason: impl Into<String>) -> Self {
        Self { line: spec.line_of(option).filter(|line| *line > 0), reason: reason.into() }
    }
}

/// What only a disk has.
const OF_DISKS: [&str; 8] =
    ["rw", "bs", "size", "filename", "verify", "rwmixread", "rwmixwrite", "random_distribution"];

impl<'s> Plan<'s> {
    /// The plan for `spec`.
    ///
    /// # Errors
    /// The first option that cannot be, or not with the others.
    pub fn of(spec: &'s JobSpec) -> Result<Self, Refused> {
        let kind = word(spec, "ioengine", spec.engine.as_deref(), EngineKind::InProcess)?;
        let program = match spec.program.as_deref() {
            None => match kind {
                EngineKind::InProcess | EngineKind::Remote => ProgramKind::Disk,
                EngineKind::Kernel => ProgramKind::Shape(Shape::Sense),
                _ => ProgramKind::Shape(Shape::Plain),
            },
            Some("disk") => ProgramKind::Disk,
            Some(_) => {
                let shape = word(spec, "program", spec.program.as_deref(), Shape::Plain)?;
                ProgramKind::Shape(shape)
            }
        };
        let plan = Plan {
            spec,
            kind,
            program,
            mode: word(spec, "mode", spec.mode.as_deref(), Mode::Cached)?,
            wait: word(spec, "wait", spec.wait.as_deref(), WaitStrategy::default())?,
        };
        plan.check_program()?;
        plan.check_what_is_not_there()?;
        plan.check_guests()?;
        plan.check_amounts()?;
        Ok(plan)
    }

    fn refuse<T>(&self, option: &str, reason: impl Into<String>) -> Result<T, Refused> {
        Err(Refused::new(self.spec, option, reason))
    }

    /// Which programs an engine's devices know.
    fn check_program(&self) -> Result<(), Refused> {
        let (kind, program) = (self.kind.name(), self.program.name());
        match (self.kind, self.program) {
            (EngineKind::InProcess, ProgramKind::Shape(_)) => self.refuse(
                "program",
                format!("program={program}: ioengine={kind} has disks; use ioengine=null, or program=disk"),
            ),
            // What a device does with a WRITE is its own business, and perhaps somebody's data.
            (EngineKind::Kernel, ProgramKind::Shape(shape)) if shape != Shape::Sense => self.refuse(
                "program",
                format!("program={program}: devices of the kernel's are given sense, or disk where they are FBA disks"),
            ),
            (EngineKind::Remote, ProgramKind::Shape(Shape::Search)) => self.refuse(
                "program",
                format!("program={program}: a server has no device that searches; use ioengine=null"),
            ),
            (EngineKind::InProcess | EngineKind::Remote | EngineKind::Kernel, _) => Ok(()),
            (_, ProgramKind::Disk) => self.refuse(
                "program",
                format!("program={program}: ioengine={kind} has no disks; use plain, idal, chain, search or sense"),
            ),
            _ => Ok(()),
        }
    }

    /// Options that would change nothing: a figure that leaves out half of its job is worth nothing.
    fn check_what_is_not_there(&self) -> Result<(), Refused> {
        let (kind, spec) = (self.kind.name(), self.spec);
        if let ProgramKind::Shape(shape) = self.program {
            let mut of_disks = OF_DISKS.to_vec();
            // It names what is driven there.
            if matches!(self.kind, EngineKind::Remote | EngineKind::Kernel) {
                of_disks.retain(|option| *option != "filename");
            }
            if let Some(option) = spec.first_given(&of_disks) {
                let program = shape.name();
                return self.refuse(
                    option,
                    format!("{option} is for disks, and program={program} of ioengine={kind} is none; leave it out"),
                );
            }
        }
        let missing: &[&str] = match self.kind {
            EngineKind::SyncEpoll => &["mode", "wait", "budget"],
            EngineKind::QemuShape | EngineKind::PerRequestPin => &["mode", "wait"],
            EngineKind::NullTranslate => &["mode", "budget"],
            _ => &[],
        };
        if let Some(option) = spec.first_given(missing) {
            return self.refuse(
                option,
                format!("{option}: ioengine={kind} has no such thing; leave it out"),
            );
        }
        if self.mode == Mode::Pinned && spec.line_of("budget").is_some() {
            let reason = "budget: mode=pinned pins the whole guest; leave it out";
            return self.refuse("budget", reason);
        }
        let is_elsewhere = matches!(self.kind, EngineKind::Remote | EngineKind::Kernel);
        if is_elsewhere && spec.filename.is_none() {
            let what = match self.kind {
                EngineKind::Remote => "a socket of 'vfio-ccw serve', or a folder of sockets",
                _ => "devices of the kernel's vfio-ccw, with commas between them",
            };
            return self.refuse("ioengine", format!("ioengine={kind} needs filename: {what}"));
        }
        Ok(())
    }

    /// What several guests cannot share.
    fn check_guests(&self) -> Result<(), Refused> {
        let spec = self.spec;
        if spec.numjobs == 1 {
            return Ok(());
        }
        let guests = spec.numjobs;
        match self.kind {
            EngineKind::Remote | EngineKind::Kernel => self.refuse(
                "numjobs",
                format!("numjobs={guests} with ioengine={}: a device has one guest; use iodepth, or run the command twice", self.kind.name()),
            ),
            EngineKind::InProcess if spec.filename.is_some() && spec.rw != Rw::Read => self.refuse(
                "numjobs",
                format!("numjobs={guests} with filename: the guests would write over each other; leave filename out, or read only"),
            ),
            _ => Ok(()),
        }
    }

    /// What is too much, or nothing.
    fn check_amounts(&self) -> Result<(), Refused> {
        let spec = self.spec;
        let block = spec.block_bytes;
        if self.program == ProgramKind::Disk && block > MAX_TRANSFER {
            let most = Bytes(MAX_TRANSFER.into());
            return self.refuse("bs", format!("bs={block}: one program moves {most} at most"));
        }
        if let ProgramKind::Shape(shape) = self.program {
            let memory = shape.memory(spec.iodepth as usize);
            if memory > MOST_MEMORY {
                let (needs, most) = (Bytes(memory), Bytes(MOST_MEMORY));
                return self.refuse(
                    "iodepth",
                    format!("iodepth={} of program={} needs {needs} of guest memory, and {most} is the most; give less", spec.iodepth, shape.name()),
                );
            }
        }
        if let (Some(rate), Some(time)) = (spec.rate_iops, spec.runtime)
            && rate * (time + spec.ramp_time).as_secs_f64() < 1.0
        {
            return self.refuse(
                "rate_iops",
                format!("rate_iops={rate}: not one request is due within {time:?}; give a higher rate, or more runtime"),
            );
        }
        Ok(())
    }

    /// What `filename` names, where it must be there.
    pub fn filename(&self) -> Result<&'s Path, Refused> {
        let missing = || Refused::new(self.spec, "ioengine", "filename is missing");
        self.spec.filename.as_deref().ok_or_else(missing)
    }
}

/// The word of an option as what it means.
fn word<T: FromStr<Err: fmt::Display>>(
    spec: &JobSpec,
    option: &str,
    word: Option<&str>,
    otherwise: T,
) -> Result<T, Refused> {
    let Some(word) = word else { return Ok(otherwise) };
    word.parse().map_err(|error| Refused::new(spec, option, format!("{option}={word}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vfio_ccw_load::JobFile;

    fn refused(options: &str) -> String {
        let file = JobFile::parse(&format!("[a]\nnumber_ios=1\n{options}\n")).unwrap();
        Plan::of(&file.jobs[0]).expect_err(options).to_string()
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_line() {
        for (options, says) in [
            ("ioengine=libaio", "line 3: ioengine=libaio: there is no engine"),
            ("program=disc", "line 3: program=disc: there is no program"),
            ("mode=lazy", "line 3: mode=lazy"),
            ("wait=busy", "line 3: wait=busy"),
            ("bs=2M", "line 3: bs=2097152: one program moves 1 MiB at most"),
            ("program=idal", "line 3: program=idal: ioengine=inprocess has disks"),
            ("ioengine=null\nprogram=disk", "line 4: program=disk: ioengine=null has no disks"),
            ("ioengine=null\nbs=4k", "line 4: bs is for disks"),
            (
                "ioengine=sync-epoll\nwait=spin",
                "line 4: wait: ioengine=sync-epoll has no such thing",
            ),
            ("mode=pinned\nbudget=1M", "line 4: budget: mode=pinned pins the whole guest"),
            ("ioengine=remote", "line 3: ioengine=remote needs filename: a socket"),
            ("ioengine=kernel", "line 3: ioengine=kernel needs filename: devices"),
            ("ioengine=kernel\nfilename=0.0.0001\nprogram=plain", "line 5: program=plain: devices"),
            ("ioengine=remote\nfilename=/run/a\nnumjobs=2", "line 5: numjobs=2"),
            ("filename=a.img\nrw=write\nnumjobs=2", "line 5: numjobs=2 with filename"),
            ("ioengine=null\nprogram=idal\niodepth=65536", "line 5: iodepth=65536"),
            ("rate_iops=0.1\nruntime=5", "line 3: rate_iops=0.1: not one request"),
        ] {
            let error = refused(options);
            assert!(error.starts_with(says), "{options:?}: {error}");
        }
    }

    #[test]
    fn options_of_no_file_have_no_line() {
        let mut spec = JobSpec::new("a");
        spec.set("ioengine", "libaio").unwrap();
        let error = Plan::of(&spec).unwrap_err();
        assert_eq!(error.line, None);
        assert!(error.to_string().starts_with("ioengine=libaio"), "{error}");
    }

    #[test]
    fn defaults_follow_the_engine() {
        let plan = |options: &[(&str, &str)]| {
            let mut spec = JobSpec::new("a");
            options.iter().for_each(|(name, value)| spec.set(name, value).unwrap());
            Plan::of(&spec).map(|plan| (plan.kind, plan.program, plan.mode)).unwrap()
        };
        assert_eq!(plan(&[]), (EngineKind::InProcess, ProgramKind::Disk, Mode::Cached));
        let null = plan(&[("ioengine", "null"), ("mode", "on-demand")]);
        assert_eq!(null, (EngineKind::Null, ProgramKind::Shape(Shape::Plain), Mode::OnDemand));
        let kernel = plan(&[("ioengine", "kernel"), ("filename", "0.0.1234")]);
        assert_eq!(kernel.1, ProgramKind::Shape(Shape::Sense));
    }
}
