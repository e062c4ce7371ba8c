//! `vfio-ccw serve`: channel devices for VMMs in other processes.

mod device;

use std::collections::HashMap;
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};
use vfio_ccw::confinement::{Confinement, User};
use vfio_ccw::server::{ServedDevice, Server};
use vfio_ccw::volume::Volume;
use vfio_ccw::{Driver, DriverChoice, WaitStrategy};
use vfio_ccw_metrics::{Endpoint, Registry};

use self::device::{DeviceWord, Kind};
use super::interrupt::EXIT_INTERRUPTED;
use super::options::MetricsAddress;
use super::{Failure, say, tell};

/// Device number of the first device.
const FIRST_DEVNO: u16 = 0x1000;

/// Serve devices to VMMs in other processes, over vfio-user.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    vfio-ccw serve --device fba:disk.img --socket /run/vm1/disk.sock\n  \
    vfio-ccw serve --device null,count=64 --device fba:disk.img,ro,name=root --socket-dir /run/vm1\n  \
    vfio-ccw serve --device fba:disk.img,count=8 --socket-dir /run/vm1 --metrics 127.0.0.1:9465\n  \
    vfio-ccw --remote /run/vm1                           put load on them from another process\n\n\
    A line 'ready' on standard output says that clients can connect. SIGTERM or Ctrl-C: programs that run come to\n\
    their end, volumes are synced, and the server ends with status 0; a second one ends it at once.")]
pub(super) struct Serve {
    /// null, or fba:FILE for a disk on a raw image; ',ro' protects it, ',size=BYTES' makes the image where it is
    /// not there, ',count=N' makes N of them on sockets of their own, ',name=NAME' names the socket.
    #[arg(long, value_name = "DEVICE", required = true)]
    device: Vec<DeviceWord>,
    /// The socket of the only device.
    #[arg(long, value_name = "PATH", required_unless_present = "socket_dir")]
    socket: Option<PathBuf>,
    /// The folder for the sockets of all devices: null0.sock, fba0.sock and so on.
    #[arg(long, value_name = "FOLDER", conflicts_with = "socket")]
    socket_dir: Option<PathBuf>,
    /// Permissions of the sockets, octal.
    #[arg(long, value_name = "MODE", default_value = "600", value_parser = mode)]
    socket_mode: u32,
    /// What file I/O runs on: auto, io_uring or epoll.
    #[arg(long, value_name = "DRIVER", default_value = "auto")]
    driver: DriverChoice,
    /// How it waits for programs that come over a lane: sleep, spin (a whole core), or
    /// adaptive:MICROSECONDS:PERCENT.
    #[arg(long, value_name = "STRATEGY", default_value_t)]
    wait: WaitStrategy,
    /// Whether the server gives up what it does not need: all capabilities, and all system calls but some (on), or
    /// runs as it was started (off).
    #[arg(long, value_name = "HOW", default_value = "on", value_parser = sandbox, action = clap::ArgAction::Set)]
    sandbox: bool,
    /// Be this user from the first client on, by numbers: UID or UID:GID. The sockets are given to it.
    #[arg(long, value_name = "USER")]
    user: Option<User>,
    /// Serve Prometheus metrics there, or off.
    #[arg(long, value_name = "ADDRESS", default_value = "off")]
    metrics: MetricsAddress,
}

fn mode(word: &str) -> Result<u32, String> {
    match u32::from_str_radix(word, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err(format!("'{word}' are no permissions: use three octal digits, such as 660")),
    }
}

fn sandbox(word: &str) -> Result<bool, String> {
    match word {
        "on" => Ok(true),
        "off" => Ok(false),
        other => Err(format!("'{other}' is not a way to run: use on or off")),
    }
}

impl Serve {
    /// Runs it.
    pub(super) fn run(&self) -> Result<bool, Failure> {
        let stop = stop_signal()?;
        let registry = Registry::new();
        let mut server = Server::new()
            .driver(self.driver)
            .wait(self.wait)
            .socket_mode(self.socket_mode)
            .registry(registry.clone());
        let devices = self.devices()?;
        let mut lines = Vec::new();
        for (path, what, device) in devices {
            server.serve(&path, device)?;
            if let Some(User { uid, gid }) = self.user {
                chown(&path, Some(uid), Some(gid)).map_err(|error| {
                    format!("socket {} cannot be given to {uid}:{gid}: {error}", path.display())
                })?;
            }
            lines.push(format!("serving {what} at {}", path.display()));
        }
        let endpoint = match self.metrics {
            MetricsAddress::Off => None,
            MetricsAddress::At(address) => Some(Endpoint::bind(address, registry)?),
        };
        if self.user.is_some() && !self.sandbox {
            return Err("--user is part of the sandbox: leave --sandbox off away".into());
        }
        server.run(stop.into(), |driver| {
            tracing::info!("file I/O runs on {}", driver.name());
            if let Some(endpoint) = &endpoint {
                tell(format_args!("metrics: http://{}/metrics", endpoint.local_addr()));
            }
            if self.sandbox {
                let confinement = Confinement::new().io_uring(driver == Driver::IoUring);
                let confinement = match self.user {
                    Some(user) => confinement.user(user),
                    None => confinement,
                };
                let confined = confinement.enter()?;
                tracing::info!("{confined}");
            }
            lines.iter().try_for_each(say)?;
            say("ready")
        })?;
        Ok(true)
    }

    /// The devices, each with its socket and what it is.
    fn devices(&self) -> Result<Vec<(PathBuf, String, ServedDevice)>, Failure> {
        let count: usize = self.device.iter().map(|word| usize::from(word.count)).sum();
        if let (Some(socket), true) = (&self.socket, count > 1) {
            return Err(format!(
                "--socket {} is for one device, and {count} are named: use --socket-dir",
                socket.display()
            )
            .into());
        }
        if count > usize::from(u16::MAX - FIRST_DEVNO) {
            return Err(
                format!("{count} devices: {} have device numbers", u16::MAX - FIRST_DEVNO).into()
            );
        }
        let mut devices = Vec::with_capacity(count);
        let mut numbers: HashMap<String, u32> = HashMap::new();
        for word in &self.device {
            let volume = match &word.kind {
                Kind::Null => None,
                Kind::Fba { image, read_only, size } => {
                    if let Some(bytes) = size {
                        device::make(image, *bytes).map_err(|error| {
                            format!("image {} cannot be made: {error}", image.display())
                        })?;
                    }
                    Some(Arc::new(Volume::open(image, *read_only)?))
                }
            };
            let stem = word.name.clone().unwrap_or_else(|| word.kind.name().to_owned());
            for _ in 0..word.count {
                let number = numbers.entry(stem.clone()).or_default();
                // A device with a name of its own has no number, if it is the only one.
                let name = match word.name.is_some() && word.count == 1 {
                    true if *number > 0 => {
                        return Err(format!("two devices have the name '{stem}'").into());
                    }
                    true => stem.clone(),
                    false => format!("{stem}{number}"),
                };
                *number += 1;
                let path = match (&self.socket, &self.socket_dir) {
                    (Some(socket), _) => socket.clone(),
                    (None, Some(folder)) => folder.join(format!("{name}.sock")),
                    (None, None) => return Err("--socket or --socket-dir is needed".into()),
                };
                let devno = FIRST_DEVNO + devices.len() as u16;
                let (what, device) = match &volume {
                    None => ("null".to_owned(), ServedDevice::null(devno)),
                    Some(volume) => {
                        let access = if volume.is_read_only() { ", read only" } else { "" };
                        let what = format!("fba {}{access}", volume.path().display());
                        (what, ServedDevice::fba(devno, volume.clone()))
                    }
                };
                devices.push((path, what, device));
            }
        }
        Ok(devices)
    }
}

/// What becomes readable when the server is to end. A second signal ends the process.
fn stop_signal() -> Result<UnixStream, Failure> {
    let (stop, signalled) = UnixStream::pair()?;
    let seen = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag unset and only sets it.
        signal_hook::flag::register_conditional_shutdown(signal, EXIT_INTERRUPTED, seen.clone())?;
        signal_hook::flag::register(signal, seen.clone())?;
        signal_hook::low_level::pipe::register(signal, signalled.try_clone()?)?;
    }
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sandbox_is_on_or_off() {
        assert_eq!((sandbox("on"), sandbox("off")), (Ok(true), Ok(false)));
        assert!(sandbox("no").unwrap_err().contains("use on or off"));
    }

    #[test]
    fn permissions_are_octal() {
        assert_eq!(mode("660"), Ok(0o660));
        for wrong in ["", "8", "1000", "rw"] {
            assert!(mode(wrong).unwrap_err().contains("octal"), "{wrong}");
        }
    }
}
