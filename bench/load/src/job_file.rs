//! Jobs as fio's users write them: sections of `option=value`, of which `[global]` holds for those behind it.
//!
//! ```text
//! ; four kilobytes at random, seven reads for three writes, at 50,000 a second
//! [global]
//! bs=4k
//! iodepth=32
//! runtime=30s
//! ramp_time=2s
//!
//! [mixed]
//! rw=randrw
//! rwmixread=70
//! rate_iops=50000
//! random_distribution=zipf:0.99
//! verify=pattern
//! ```
//!
//! Names and meanings are fio's where both have the thing; an option that fio has and this has not is an error, since a
//! figure that ignores half of its job is worth nothing. The same words are options of the command line.

use crate::access::Access;
use crate::units::parse_bytes;
use crate::workload::SECTOR;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// The most sections of a file, and bytes of a line.
const MOST_JOBS: usize = 256;
const LONGEST_LINE: usize = 4096;

/// What a job does to the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rw {
    /// Reads only.
    Read,
    /// Writes only.
    Write,
    /// Both, as `rwmixread` says.
    Mixed,
}

/// One job: a section of the file, with what `[global]` has said before it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct JobSpec {
    /// The section's name.
    pub name: String,
    /// `rw`: what it does. Default: read.
    pub rw: Rw,
    /// `rw`: whether it goes through the volume in order.
    pub sequential: bool,
    /// `bs`: bytes of one transfer, a multiple of 512. Default: 4096.
    pub block_bytes: u32,
    /// `iodepth`: subchannels with a program in flight, each. Default: 1.
    pub iodepth: u32,
    /// `numjobs`: so many of it at a time. Default: 1.
    pub numjobs: u32,
    /// `runtime`: how long it lasts, not counting the ramp.
    pub runtime: Option<Duration>,
    /// `number_ios`: how many requests it makes in all.
    pub number_ios: Option<u64>,
    /// `ramp_time`: how long it runs before anything counts.
    pub ramp_time: Duration,
    /// `rate_iops`: requests that are due a second; a closed loop without.
    pub rate_iops: Option<f64>,
    /// `rwmixread`: percent of reads where it does both. Default: 50.
    pub read_mix: u8,
    /// `random_distribution`: where random accesses go. Default: uniform.
    pub distribution: Access,
    /// `verify`: whether data that is read is compared with what was written.
    pub verify: bool,
    /// `size`: bytes of the volume that are used.
    pub size: Option<u64>,
    /// `filename`: an image, or the socket of a device server.
    pub filename: Option<PathBuf>,
    /// `ioengine`: what is driven; the caller knows the names.
    pub engine: Option<String>,
    /// `program`: shape of the channel programs; the caller knows the words, as of the next two.
    pub program: Option<String>,
    /// `mode`: when guest memory is pinned.
    pub mode: Option<String>,
    /// `wait`: how shards wait for work.
    pub wait: Option<String>,
    /// `budget`: most bytes of guest memory that are pinned.
    pub budget: Option<u64>,
    /// `randseed`: seed of all draws. Default: 0.
    pub seed: u64,
    /// Which options were set, by their first names, and in which line; line 0: not in a file.
    given: BTreeMap<&'static str, usize>,
}

impl JobSpec {
    /// A job of this name with all defaults.
    pub fn new(name: impl Into<String>) -> Self {
        JobSpec {
            name: name.into(),
            rw: Rw::Read,
            sequential: true,
            block_bytes: 4096,
            iodepth: 1,
            numjobs: 1,
            runtime: None,
            number_ios: None,
            ramp_time: Duration::ZERO,
            rate_iops: None,
            read_mix: 50,
            distribution: Access::Uniform,
            verify: false,
            size: None,
            filename: None,
            engine: None,
            program: None,
            mode: None,
            wait: None,
            budget: None,
            seed: 0,
            given: BTreeMap::new(),
        }
    }

    /// The line in which `option` was set: 0 where that was not in a file, none where it was not set.
    pub fn line_of(&self, option: &str) -> Option<usize> {
        self.given.get(option).copied()
    }

    /// The first of `options` that was set.
    pub fn first_given(&self, options: &[&'static str]) -> Option<&'static str> {
        options.iter().copied().find(|option| self.given.contains_key(option))
    }

    /// Percent of reads.
    pub fn read_percent(&self) -> u8 {
        match self.rw {
            Rw::Read => 100,
            Rw::Write => 0,
            Rw::Mixed => self.read_mix,
        }
    }

    /// Where accesses go.
    pub fn access(&self) -> Access {
        if self.sequential { Access::Sequential } else { self.distribution }
    }

    /// Sets option `name` to `value`.
    ///
    /// # Errors
    /// No such option, or not with this value.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), OptionError> {
        self.set_in_line(0, name, value)
    }

    /// The same; the option stands in line `line` of a file.
    fn set_in_line(&mut self, line: usize, name: &str, value: &str) -> Result<(), OptionError> {
        let wrong = |wants: &str| OptionError::Value {
            option: shown(name),
            value: shown(value),
            wants: wants.to_owned(),
        };
        match name {
            "rw" | "readwrite" => {
                (self.rw, self.sequential) = match value {
                    "read" => (Rw::Read, true),
                    "write" => (Rw::Write, true),
                    "rw" | "readwrite" => (Rw::Mixed, true),
                    "randread" => (Rw::Read, false),
                    "randwrite" => (Rw::Write, false),
                    "randrw" => (Rw::Mixed, false),
                    _ => {
                        return Err(wrong("read, write, rw, randread, randwrite or randrw"));
                    }
                };
            }
            "bs" | "blocksize" => {
                let bytes = parse_bytes(value).ok().and_then(|bytes| u32::try_from(bytes).ok());
                let bytes = bytes.filter(|bytes| *bytes > 0 && bytes.is_multiple_of(SECTOR));
                self.block_bytes =
                    bytes.ok_or_else(|| wrong("a multiple of 512 bytes, such as 4k"))?;
            }
            "iodepth" => {
                self.iodepth = within(value, 1..=65_536)
                    .ok_or_else(|| wrong("1 to 65536, the subchannels that have a program each"))?;
            }
            "numjobs" => {
                self.numjobs = within(value, 1..=256).ok_or_else(|| wrong("1 to 256"))?;
            }
            "runtime" => {
                let time = parse_time(value).filter(|time| !time.is_zero());
                self.runtime =
                    Some(time.ok_or_else(|| wrong("a time, such as 30 (seconds), 500ms or 5m"))?);
            }
            "ramp_time" => {
                let time = parse_time(value);
                self.ramp_time =
                    time.ok_or_else(|| wrong("a time, such as 2 (seconds) or 500ms"))?;
            }
            "number_ios" => {
                let count = within(value, 1..=u64::MAX);
                self.number_ios = Some(count.ok_or_else(|| wrong("a number from 1 on"))?);
            }
            "rate_iops" => {
                let rate = value.parse::<f64>().ok().filter(|rate| *rate > 0.0 && *rate <= 1e9);
                self.rate_iops = Some(
                    rate.ok_or_else(|| wrong("requests a second, more than 0 and at most 10^9"))?,
                );
            }
            "rwmixread" | "rwmixwrite" => {
                let percent: u8 =
                    within(value, 0..=100).ok_or_else(|| wrong("0 to 100, in percent"))?;
                self.read_mix = if name == "rwmixread" { percent } else { 100 - percent };
            }
            "random_distribution" => {
                self.distribution = distribution(value)
                    .ok_or_else(|| wrong("random, or zipf:THETA such as zipf:0.99"))?;
            }
            "verify" => {
                self.verify = match value {
                    "pattern" | "1" | "" => true,
                    "0" | "none" => false,
                    _ => return Err(wrong("pattern, or 0")),
                };
            }
            "size" => {
                let bytes = parse_bytes(value).ok().filter(|bytes| *bytes > 0);
                self.size = Some(bytes.ok_or_else(|| wrong("a size, such as 64M"))?);
            }
            "filename" if !value.is_empty() => self.filename = Some(value.into()),
            "filename" => return Err(wrong("a path")),
            "ioengine" if !value.is_empty() => self.engine = Some(value.to_owned()),
            "ioengine" => return Err(wrong("the name of an engine")),
            "program" if !value.is_empty() => self.program = Some(value.to_owned()),
            "program" => return Err(wrong("the name of a shape of channel programs")),
            "mode" if !value.is_empty() => self.mode = Some(value.to_owned()),
            "mode" => return Err(wrong("pinned, on-demand or cached")),
            "wait" if !value.is_empty() => self.wait = Some(value.to_owned()),
            "wait" => return Err(wrong("sleep, spin or adaptive:MICROSECONDS:PERCENT")),
            "budget" => {
                let bytes = parse_bytes(value).ok().filter(|bytes| *bytes >= 4096);
                self.budget =
                    Some(bytes.ok_or_else(|| wrong("a size of 4096 bytes at least, such as 64M"))?);
            }
            "randseed" => {
                self.seed = within(value, 0..=u64::MAX).ok_or_else(|| wrong("a number"))?;
            }
            // A job with a time always lasts so long here.
            "time_based" if matches!(value, "" | "1") => {}
            "time_based" => {
                return Err(wrong("nothing, or 1: a job with a runtime always lasts so long"));
            }
            other => {
                return Err(OptionError::Unknown { option: shown(other), near: nearest(other) });
            }
        }
        let name = match name {
            "readwrite" => "rw",
            "blocksize" => "bs",
            other => other,
        };
        self.given.extend(OPTIONS.into_iter().find(|option| *option == name).map(|it| (it, line)));
        Ok(())
    }

    /// What cannot be, of the job as a whole.
    fn check(&self) -> Result<(), OptionError> {
        if self.runtime.is_none() && self.number_ios.is_none() {
            return Err(OptionError::Endless { job: self.name.clone() });
        }
        Ok(())
    }
}

/// A whole file of jobs.
#[derive(Debug, Clone, PartialEq)]
pub struct JobFile {
    /// The jobs in their order, without `[global]`.
    pub jobs: Vec<JobSpec>,
}

impl JobFile {
    /// Reads the text of a job file.
    ///
    /// # Errors
    /// The first line that is wrong, with what would be right.
    pub fn parse(text: &str) -> Result<Self, JobFileError> {
        let mut global = JobSpec::new("global");
        let mut jobs: Vec<(usize, JobSpec)> = Vec::new();
        let mut is_global = None;
        for (line, words) in (1..).zip(text.lines()) {
            let at = |fault: Fault| JobFileError { line, fault };
            if words.len() > LONGEST_LINE {
                return Err(at(Fault::TooLong));
            }
            let words = words.trim();
            if words.is_empty() || words.starts_with([';', '#']) {
                continue;
            }
            if let Some(rest) = words.strip_prefix('[') {
                let name = rest.strip_suffix(']').map(str::trim).filter(|name| !name.is_empty());
                let name = name.ok_or_else(|| at(Fault::Section { words: shown(words) }))?;
                is_global = Some(name == "global");
                if name != "global" {
                    if jobs.len() == MOST_JOBS {
                        return Err(at(Fault::TooMany));
                    }
                    jobs.push((line, JobSpec { name: shown(name), ..global.clone() }));
                }
                continue;
            }
            let (name, value) = words.split_once('=').unwrap_or((words, ""));
            let job = match is_global {
                None => return Err(at(Fault::Outside { words: shown(words) })),
                Some(true) => &mut global,
                Some(false) => match jobs.last_mut() {
                    Some((_, job)) => job,
                    None => return Err(at(Fault::Outside { words: shown(words) })),
                },
            };
            job.set_in_line(line, name.trim(), value.trim())
                .map_err(|error| at(Fault::Option(error)))?;
        }
        for (line, job) in &jobs {
            job.check()
                .map_err(|error| JobFileError { line: *line, fault: Fault::Option(error) })?;
        }
        if jobs.is_empty() {
            let line = text.lines().count().max(1);
            return Err(JobFileError { line, fault: Fault::NoJobs });
        }
        Ok(JobFile { jobs: jobs.into_iter().map(|(_, job)| job).collect() })
    }
}

/// What is wrong with a job file, and in which line, from 1 on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {fault}")]
pub struct JobFileError {
    /// Number of the line.
    pub line: usize,
    /// What is wrong there.
    pub fault: Fault,
}

/// What can be wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// An option, or its value.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// A section that does not end, or has no name.
    #[error("'{words}' is no section: write [name]")]
    Section {
        /// The line.
        words: String,
    },
    /// An option before any section.
    #[error("'{words}' belongs to no job: begin with [global] or [name]")]
    Outside {
        /// The line.
        words: String,
    },
    /// Nobody writes such a line.
    #[error("the line is longer than {LONGEST_LINE} bytes")]
    TooLong,
    /// Nobody writes so many jobs.
    #[error("there are more than {MOST_JOBS} jobs")]
    TooMany,
    /// Nothing to do.
    #[error("the file has no job: add a section [name] with options such as rw=randread")]
    NoJobs,
}

/// Why an option cannot be set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionError {
    /// There is none of this name.
    #[error("there is no option '{option}'{}", Near(near))]
    Unknown {
        /// The name.
        option: String,
        /// One that looks like it.
        near: Option<&'static str>,
    },
    /// It does not take the value.
    #[error("{option}={value}: {option} is {wants}")]
    Value {
        /// The option.
        option: String,
        /// What it was set to.
        value: String,
        /// What it takes.
        wants: String,
    },
    /// A job without an end.
    #[error("job '{job}' has no end: give runtime or number_ios")]
    Endless {
        /// Its name.
        job: String,
    },
}

/// Every option.
const OPTIONS: [&str; 23] = [
    "rw",
    "readwrite",
    "bs",
    "blocksize",
    "iodepth",
    "numjobs",
    "runtime",
    "ramp_time",
    "number_ios",
    "rate_iops",
    "rwmixread",
    "rwmixwrite",
    "random_distribution",
    "verify",
    "size",
    "filename",
    "ioengine",
    "program",
    "mode",
    "wait",
    "budget",
    "randseed",
    "time_based",
];

struct Near<'a>(&'a Option<&'static str>);

impl fmt::Display for Near<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(near) => write!(f, "; is '{near}' meant?"),
            None => f.write_str("; the options are those of 'vfio-ccw-bench load --help'"),
        }
    }
}

/// The option whose name differs least from `word`, if it differs in few letters.
fn nearest(word: &str) -> Option<&'static str> {
    let word: Vec<char> = word.chars().take(32).collect();
    let far = |option: &'static str| {
        let option: Vec<char> = option.chars().collect();
        distance(&word, &option)
    };
    let near = OPTIONS.into_iter().map(|option| (far(option), option)).min()?;
    (near.0 <= 2 && near.0 < word.len()).then_some(near.1)
}

/// Letters that have to be changed, added or taken out to get from one to the other.
fn distance(one: &[char], other: &[char]) -> usize {
    let mut before: Vec<usize> = (0..=other.len()).collect();
    for (row, letter) in one.iter().enumerate() {
        let mut now = vec![row + 1];
        for (column, is) in other.iter().enumerate() {
            let change = before[column] + usize::from(letter != is);
            now.push(change.min(before[column + 1] + 1).min(now[column] + 1));
        }
        before = now;
    }
    before[other.len()]
}

/// What of a word an error shows.
fn shown(word: &str) -> String {
    word.chars().take(64).map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

fn within<T: std::str::FromStr + PartialOrd>(
    value: &str,
    range: std::ops::RangeInclusive<T>,
) -> Option<T> {
    value.parse().ok().filter(|number| range.contains(number))
}

/// A time: seconds, or a number with us, ms, s, m or h.
fn parse_time(value: &str) -> Option<Duration> {
    let digits = value.len() - value.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = value.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let micros = match unit {
        "us" => 1,
        "ms" => 1_000,
        "" | "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        _ => return None,
    };
    number.checked_mul(micros).map(Duration::from_micros)
}

fn distribution(value: &str) -> Option<Access> {
    match value.split_once(':') {
        None if value == "random" => Some(Access::Uniform),
        Some(("zipf", theta)) => {
            let access = Access::Zipf(theta.parse().ok()?);
            access.fault().is_none().then_some(access)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FILE: &str = "\
        ; four kilobytes\n\
        [global]\n\
        bs = 4k\n\
        iodepth=32\n\
        runtime=30s\n\
        ramp_time=500ms\n\
        \n\
        # mixed\n\
        [mixed]\n\
        rw=randrw\n\
        rwmixread=70\n\
        rate_iops=50000.5\n\
        random_distribution=zipf:0.99\n\
        verify=pattern\n\
        time_based\n\
        [global]\n\
        bs=64k\n\
        [through]\n\
        rw=write\n\
        runtime=5m\n\
        number_ios=7\n\
        size=1G\n\
        filename=disk.img\n\
        ioengine=remote\n\
        randseed=9\n\
        numjobs=2\n";

    #[test]
    fn a_file_gives_its_jobs() {
        let file = JobFile::parse(FILE).unwrap();
        let [mixed, through] = &file.jobs[..] else { panic!("{file:?}") };
        assert_eq!((mixed.name.as_str(), through.name.as_str()), ("mixed", "through"));
        assert_eq!((mixed.block_bytes, through.block_bytes), (4096, 65_536));
        assert_eq!((mixed.iodepth, through.iodepth), (32, 32));
        assert_eq!((mixed.read_percent(), through.read_percent()), (70, 0));
        assert_eq!((mixed.access(), through.access()), (Access::Zipf(0.99), Access::Sequential));
        assert_eq!(mixed.runtime, Some(Duration::from_secs(30)));
        assert_eq!(mixed.ramp_time, Duration::from_millis(500));
        assert_eq!(mixed.rate_iops, Some(50_000.5));
        assert!(mixed.verify && !through.verify);
        assert_eq!(
            (through.runtime, through.number_ios),
            (Some(Duration::from_secs(300)), Some(7))
        );
        assert_eq!((through.size, through.seed, through.numjobs), (Some(1 << 30), 9, 2));
        assert_eq!(through.filename.as_deref(), Some("disk.img".as_ref()));
        assert_eq!(through.engine.as_deref(), Some("remote"));
        let lines = ["bs", "rw", "size", "budget"].map(|option| through.line_of(option));
        assert_eq!(lines, [Some(17), Some(19), Some(22), None]);
        assert_eq!(through.first_given(&["budget", "size", "rw"]), Some("size"));
    }

    #[test]
    fn each_mistake_is_told_with_its_line_and_a_remedy() {
        for (text, line, says) in [
            ("", 1, "no job"),
            ("[global]\nbs=4k\n", 2, "no job"),
            ("rw=read\n", 1, "begin with [global]"),
            ("[a]\nruntime=1\n[b\n", 3, "write [name]"),
            ("[a]\niodpeth=3\n", 2, "is 'iodepth' meant?"),
            ("[a]\ngtod_reduce=1\n", 2, "vfio-ccw-bench load --help"),
            ("[a]\nbs=1000\n", 2, "multiple of 512"),
            ("[a]\niodepth=0\n", 2, "1 to 65536"),
            ("[a]\nrw=randomread\n", 2, "randread"),
            ("[a]\nruntime=0\n", 2, "30 (seconds)"),
            ("[a]\nruntime=5x\n", 2, "30 (seconds)"),
            ("[a]\nrate_iops=-1\n", 2, "more than 0"),
            ("[a]\nrate_iops=NaN\n", 2, "more than 0"),
            ("[a]\nrwmixread=101\n", 2, "0 to 100"),
            ("[a]\nrandom_distribution=zipf:-3\n", 2, "zipf:0.99"),
            ("[a]\nverify=md5\n", 2, "pattern"),
            ("[a]\nsize=huge\n", 2, "64M"),
            ("[a]\nbudget=1\n", 2, "4096 bytes at least"),
            ("[a]\nmode=\n", 2, "on-demand"),
            ("[a]\nruntime=1\n[b]\nrw=read\n", 3, "give runtime or number_ios"),
        ] {
            let error = JobFile::parse(text).expect_err(text);
            assert_eq!(error.line, line, "{text:?}: {error}");
            assert!(error.to_string().contains(says), "{text:?}: {error}");
        }
        let long = format!("[a]\n{}\n", "x".repeat(5000));
        assert_eq!(JobFile::parse(&long), Err(JobFileError { line: 2, fault: Fault::TooLong }));
        let many = "[a]\nruntime=1\n".repeat(257);
        assert_eq!(JobFile::parse(&many).expect_err("257").fault, Fault::TooMany);
    }

    #[test]
    fn every_option_in_the_list_is_one() {
        for option in OPTIONS {
            let error = JobSpec::new("a").set(option, "?").err();
            let is_known = !matches!(error, Some(OptionError::Unknown { .. }));
            assert!(is_known, "{option}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(\\\\[?[a-z_]{0,12}[\\\\]=]?[ -~]{0,20}\n){0,12}") {
            if let Err(error) = JobFile::parse(&text) {
                prop_assert!(error.line >= 1 && error.line <= text.lines().count().max(1));
            }
        }
    }
}
