//! Other processes of figures, those that measure them and those that are their other side: this program again, in
//! another role.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tempfile::TempDir;
use vfio_ccw::backend::remote::RemoteDevice;
use vfio_ccw::server::{ServedDevice, Server};
use vfio_ccw::{DeviceSpec, WaitStrategy};
use vfio_ccw_metrics::DeviceClass;

use crate::fields::{FIELDS, Lacking};
use crate::parts::Part;
use crate::processor;
use crate::ratio::{FieldError, Rounds};
use crate::service_load::{BLOCK, DiskLoad, DiskShape, NullLoad};

/// The subcommand that plays a role.
pub const PEER: &str = "peer";

/// What a load's lines begin with.
const IOPS: &str = "iops ";

/// What lines of a process that measures begin with.
const VALUE: &str = "value ";
const LACK: &str = "lack ";
const FAILURE: &str = "failure ";

/// Guest memory of a load that reads.
const READERS_GUEST: u64 = 64 << 20;

/// Programs of a load before the first that count.
const WARM_UP: u64 = 20_000;

/// Plays the role that `words` name: what [`take`], [`ServerProcess`], [`LoadProcess`], [`Echo`] and `part` start.
///
/// # Errors
/// An unknown role, or what goes wrong in it.
pub fn play(words: &[String]) -> Result<(), FieldError> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", count, wait, folder] => serve(count.parse()?, wait.parse()?, Path::new(folder)),
        ["echo"] => Ok(echo()?),
        ["load", count] => load(count.parse()?),
        ["read", image, count, seed, processor] => {
            read(Path::new(image), count.parse()?, seed.parse()?, processor.parse()?)
        }
        ["rounds", name, from, to, seed] => rounds(name, from.parse()?..to.parse()?, seed.parse()?),
        ["part", name, times] => name.parse::<Part>()?.run(times.parse()?),
        _ => Err(format!("{words:?} is no role").into()),
    }
}

/// Serves null devices until standard input ends.
fn serve(count: u16, wait: WaitStrategy, folder: &Path) -> Result<(), FieldError> {
    let mut server = Server::new().wait(wait);
    for index in 0..count {
        server.serve(&socket(folder, index), ServedDevice::null(index))?;
    }
    let stdin = rustix::io::dup(io::stdin())?;
    server.run(stdin, |_| {
        println!("ready");
        Ok(())
    })?;
    Ok(())
}

fn socket(folder: &Path, index: u16) -> PathBuf {
    folder.join(format!("null{index}.sock"))
}

/// Answers each signal at standard input, an eventfd, with one at standard error, until a signal of two. (On
/// standard output the harness of tests has something to say.)
fn echo() -> io::Result<()> {
    let (mut input, mut output) =
        (File::from(rustix::io::dup(io::stdin())?), File::from(rustix::io::dup(io::stderr())?));
    loop {
        let mut count = [0; 8];
        input.read_exact(&mut count)?;
        if u64::from_ne_bytes(count) > 1 {
            return Ok(());
        }
        output.write_all(&1u64.to_ne_bytes())?;
    }
}

/// Runs as many programs as a line of standard input says on `count` null devices, and says how many a second
/// that were; until the input ends.
fn load(count: u16) -> Result<(), FieldError> {
    let mut load = NullLoad::new(count.into())?;
    load.run(WARM_UP)?;
    for line in io::stdin().lines() {
        let ios: u64 = line?.parse()?;
        let took = load.run(ios)?;
        println!("{IOPS}{}", ios as f64 / took.as_secs_f64());
    }
    Ok(())
}

/// Reads at random from `count` disks on `image` for as many milliseconds as a line of standard input says,
/// and says how many reads a second that were; until the input ends. All threads stay on `processor`.
fn read(image: &Path, count: u16, seed: u64, processor: usize) -> Result<(), FieldError> {
    // Threads that are started from now on stay there, too.
    processor::stay_on(processor)?;
    let count = usize::from(count);
    let shape = DiskShape::new(count, READERS_GUEST, seed);
    // A buffer a disk, as fio has one a request.
    let shape = DiskShape { working_set: count as u64 * u64::from(BLOCK), ..shape };
    let mut load = DiskLoad::on(image, &shape)?;
    load.warm_up()?;
    load.run(WARM_UP)?;
    for (round, line) in (0..).zip(io::stdin().lines()) {
        let time = Duration::from_millis(line?.parse()?);
        println!("{IOPS}{}", load.run_for(time, seed.wrapping_add(round))?.iops());
    }
    Ok(())
}

/// Measures these rounds of a figure, and says the value of each as it ends, or why there is none.
fn rounds(name: &str, numbers: Range<usize>, seed: u64) -> Result<(), FieldError> {
    let field = FIELDS.iter().find(|field| field.name == name).ok_or("an unknown figure")?;
    match field.each_round(numbers, seed, |value| println!("{VALUE}{value}")) {
        Ok(()) => {}
        Err(error) => match error.downcast_ref::<Lacking>() {
            Some(Lacking(what)) => println!("{LACK}{}", one_line(what)),
            None => println!("{FAILURE}{}", one_line(&error.to_string())),
        },
    }
    Ok(())
}

fn one_line(text: &str) -> String {
    text.replace('\n', "; ")
}

/// Measures rounds of a figure in a new process, and gives the value of each to `each`.
///
/// # Errors
/// What the first round that fails says, [`Lacking`] among it; or the process does not start or come to its end.
pub fn take(rounds: &Rounds<'_>, each: &mut dyn FnMut(f64)) -> Result<(), FieldError> {
    let Rounds { field, numbers, seed } = rounds;
    let [from, to, seed] = [numbers.start as u64, numbers.end as u64, *seed];
    let words = ["rounds", field.name, &from.to_string(), &to.to_string(), &seed.to_string()];
    let mut command = start(&words)?;
    // Ctrl-C is for whoever waits for it: a figure gives back what it has borrowed, such as huge pages.
    command.process_group(0);
    let mut process = Ended(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?);
    let output = process.0.stdout.take().ok_or("no output of the process that measures")?;
    let mut values = 0;
    for line in BufReader::new(output).lines() {
        let line = line?;
        if let Some(value) = line.strip_prefix(VALUE) {
            each(value.parse()?);
            values += 1;
        } else if let Some(what) = line.strip_prefix(LACK) {
            return Err(Lacking(what.to_owned()).into());
        } else if let Some(why) = line.strip_prefix(FAILURE) {
            return Err(why.into());
        }
    }
    let status = process.0.wait()?;
    if !status.success() || values != numbers.len() {
        return Err(format!("the process that measured it has ended early: {status}").into());
    }
    Ok(())
}

/// A process that has ended when this is dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Where it has not ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// This program, to run a part so many times and end.
pub(crate) fn part(part: Part, times: u64) -> io::Result<Vec<OsString>> {
    let command = start(&["part", part.name(), &times.to_string()])?;
    let words = command.get_args().map(OsStr::to_owned);
    Ok([command.get_program().to_owned()].into_iter().chain(words).collect())
}

/// This program in the role that `words` name.
fn start(words: &[&str]) -> io::Result<Command> {
    Ok(role(&std::env::current_exe()?, words))
}

/// `program`, which is a build of this one, in that role.
fn role(program: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(program);
    if cfg!(test) {
        // The harness of the tests is what runs then: its test of that name plays the role.
        command.args(["--exact", "peer_process::tests::plays_a_role", "--nocapture"]);
        command.env(PEER, words.join("\n"));
    } else {
        command.arg(PEER).args(words);
    }
    command
}

/// A process that serves null devices. It ends with this.
#[derive(Debug)]
pub struct ServerProcess {
    process: Child,
    /// Kept open for as long as it may say something.
    output: BufReader<ChildStdout>,
    folder: TempDir,
    count: u16,
}

impl ServerProcess {
    /// Starts one that has `count` devices and waits for orders as `wait` says.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn start_with(count: u16, wait: WaitStrategy) -> Result<Self, FieldError> {
        let folder = tempfile::tempdir()?;
        let (number, wait) = (count.to_string(), wait.to_string());
        let path = folder.path().to_str().ok_or("the folder for sockets has a strange name")?;
        let mut process = start(&["serve", &number, &wait, path])?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = process.stdout.take().ok_or("no output of the server")?;
        let output = BufReader::new(output);
        let mut server = ServerProcess { process, output, folder, count };
        let mut line = String::new();
        while server.output.read_line(&mut line)? > 0 {
            if line == "ready\n" {
                return Ok(server);
            }
            line.clear();
        }
        Err("the server has ended before it was ready".into())
    }

    /// Lets it do nothing from now on (SIGSTOP).
    ///
    /// # Errors
    /// Where the kernel refuses the signal.
    pub fn stop(&self) -> io::Result<()> {
        let process = Pid::from_child(&self.process);
        kill_process(process, Signal::STOP)?;
        // Its threads go on until they have heard of it.
        waitpid(Some(process), WaitOptions::UNTRACED)?;
        Ok(())
    }

    /// Ends it at once (SIGKILL).
    ///
    /// # Errors
    /// Where the kernel refuses the signal.
    pub fn kill(&mut self) -> io::Result<()> {
        self.process.kill()
    }

    /// The folder of its sockets.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Connects to its devices.
    ///
    /// # Errors
    /// Where one does not answer.
    pub fn devices(&self) -> Result<Vec<DeviceSpec>, FieldError> {
        let connect = |index| {
            let device = RemoteDevice::connect(&socket(self.folder.path(), index))?;
            Ok(DeviceSpec::remote(device.with_class(DeviceClass::Null)))
        };
        (0..self.count).map(connect).collect()
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // It ends with its input.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// A process with devices that are driven in it.
#[derive(Debug)]
pub struct LoadProcess {
    process: Child,
    output: BufReader<ChildStdout>,
}

impl LoadProcess {
    /// Starts `program`, which is a build of this one, with `count` null devices.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn null(program: &Path, count: u16) -> Result<Self, FieldError> {
        Self::of(role(program, &["load", &count.to_string()]))
    }

    /// Starts this program with `count` disks on `image` and requests drawn from `seed`, all on one processor.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn read(image: &Path, count: u16, seed: u64, processor: usize) -> Result<Self, FieldError> {
        let image = image.to_str().ok_or("the image has a strange name")?;
        let (count, seed) = (count.to_string(), seed.to_string());
        Self::of(start(&["read", image, &count, &seed, &processor.to_string()])?)
    }

    fn of(mut command: Command) -> Result<Self, FieldError> {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let output = process.stdout.take().ok_or("no output of the load")?;
        Ok(LoadProcess { process, output: BufReader::new(output) })
    }

    /// Lets it run so long, programs on null devices or milliseconds on disks: how many I/Os a second that
    /// were.
    ///
    /// # Errors
    /// Where it has failed.
    pub fn iops(&mut self, length: u64) -> Result<f64, FieldError> {
        let stdin = self.process.stdin.as_mut().ok_or("no input of the load")?;
        writeln!(stdin, "{length}")?;
        let mut line = String::new();
        while self.output.read_line(&mut line)? > 0 {
            if let Some(iops) = line.strip_prefix(IOPS) {
                return Ok(iops.trim().parse()?);
            }
            line.clear();
        }
        Err("the process of the load has ended".into())
    }
}

impl Drop for LoadProcess {
    fn drop(&mut self) {
        // It ends with its input.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// A process that answers each signal of an eventfd with one of another.
#[derive(Debug)]
pub struct Echo {
    process: Child,
    there: File,
    back: File,
}

impl Echo {
    /// Starts it.
    ///
    /// # Errors
    /// Where the kernel refuses a descriptor or a process.
    pub fn start() -> Result<Self, FieldError> {
        let pair = || -> io::Result<(OwnedFd, OwnedFd)> {
            let event = eventfd(0, EventfdFlags::CLOEXEC)?;
            Ok((event.try_clone()?, event))
        };
        let ((there, input), (back, output)) = (pair()?, pair()?);
        let process =
            start(&["echo"])?.stdin(input).stdout(Stdio::null()).stderr(output).spawn()?;
        Ok(Echo { process, there: there.into(), back: back.into() })
    }

    /// Sends one signal after the other, and returns how long each was on its way and back.
    ///
    /// # Errors
    /// Where a system call fails.
    pub fn round_trips(&mut self, count: usize) -> io::Result<Vec<Duration>> {
        let mut signal = [0; 8];
        (0..count)
            .map(|_| {
                let start = Instant::now();
                self.there.write_all(&1u64.to_ne_bytes())?;
                self.back.read_exact(&mut signal)?;
                Ok(start.elapsed())
            })
            .collect()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.there.write_all(&2u64.to_ne_bytes());
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::scratch;
    use crate::ratio::Field;
    use crate::service_load::VOLUME;

    /// Where a test of this crate starts another process, that process runs this.
    #[test]
    fn plays_a_role() {
        if let Ok(role) = std::env::var(PEER) {
            let words: Vec<String> = role.lines().map(str::to_owned).collect();
            play(&words).unwrap();
        }
    }

    #[test]
    fn an_unknown_role_is_refused() {
        assert!(play(&["sing".to_owned()]).unwrap_err().to_string().contains("sing"));
    }

    #[test]
    fn a_load_of_another_process_says_how_fast_it_was() {
        let mut load = LoadProcess::null(&std::env::current_exe().unwrap(), 2).unwrap();
        for ios in [1000, 10] {
            assert!(load.iops(ios).unwrap() > 0.0);
        }
    }

    #[test]
    fn reads_of_another_process_are_counted() {
        let image = scratch(VOLUME).unwrap();
        let processor = processor::last().unwrap();
        let mut load = LoadProcess::read(image.path(), 2, 1, processor).unwrap();
        for milliseconds in [20, 1] {
            assert!(load.iops(milliseconds).unwrap() > 0.0);
        }
    }

    #[test]
    fn a_figure_is_measured_in_another_process() {
        let field = FIELDS.iter().find(|field| field.name == "ring_spsc_vs_rtrb").unwrap();
        let values = |numbers: Range<usize>| {
            let mut values = Vec::new();
            let ended = take(&Rounds { field, numbers, seed: 1 }, &mut |value| values.push(value));
            (values, ended)
        };
        let (values, ended) = values(3..5);
        assert!(ended.is_ok() && values.len() == 2 && values.iter().all(|value| *value > 0.0));
    }

    #[test]
    fn what_is_lacked_or_fails_in_another_process_is_heard() {
        let taken = |name: &'static str| {
            let field = Field { name, ..FIELDS[0] };
            take(&Rounds { field: &field, numbers: 1..2, seed: 1 }, &mut |_| {})
        };
        let error = taken("metrics_overhead").unwrap_err();
        assert!(
            error.is::<Lacking>() && error.to_string().contains("tests do not build"),
            "{error}"
        );
        let error = taken("no_such_figure").unwrap_err().to_string();
        assert!(error.contains("ended early: exit status"), "{error}");
    }

    #[test]
    fn devices_of_another_process_can_be_connected_to() {
        let server = ServerProcess::start_with(2, WaitStrategy::Sleep).unwrap();
        assert_eq!(server.devices().unwrap().len(), 2);
    }
}
