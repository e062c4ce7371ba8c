//! Where the disks of a job come from: an image in this process, or a server.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use vfio_ccw::backend::remote::{self, RemoteDevice};
use vfio_ccw::engine::DiskEngine;
use vfio_ccw::volume::{BLOCK, Volume};
use vfio_ccw::{DeviceSpec, Service};
use vfio_ccw_metrics::DeviceClass;

use super::Failure;

/// How long a disk may take to say how large it is.
const PATIENCE: Duration = Duration::from_secs(10);

/// Disks on one volume, before they are attached.
#[derive(Debug)]
pub(super) enum Disks {
    /// As many as are wanted.
    Local(Arc<Volume>),
    /// Those that a server has.
    Remote(PathBuf, Vec<RemoteDevice>),
}

/// How to reach a server.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Remote {
    /// Use disks that 'vfio-ccw serve' has: at this socket, or at all sockets in this folder, which must be of one
    /// volume (--device fba:FILE,count=N).
    #[arg(long, value_name = "PATH")]
    pub(super) remote: Option<PathBuf>,
    /// One message for each start, also where the server knows the lane.
    #[arg(long, requires = "remote")]
    pub(super) no_lane: bool,
}

impl Remote {
    /// Connects to at most `most` disks.
    pub(super) fn connect(&self, path: &Path, most: usize) -> Result<Disks, Failure> {
        let connect = |socket: &PathBuf| -> Result<RemoteDevice, Failure> {
            let device = RemoteDevice::connect(socket)?.with_class(DeviceClass::Fba);
            Ok(if self.no_lane { device.without_lane() } else { device })
        };
        let sockets = sockets(path)?;
        let devices = sockets.iter().take(most).map(connect).collect::<Result<_, _>>()?;
        Ok(Disks::Remote(path.to_owned(), devices))
    }
}

/// The sockets that `path` names.
fn sockets(path: &Path) -> Result<Vec<PathBuf>, Failure> {
    remote::sockets(path).map_err(|error| {
        let at = path.display();
        format!(
            "{at}: {error}; start 'vfio-ccw serve --device fba:FILE --socket {at}' or, for a folder, \
             'vfio-ccw serve --device fba:FILE,count=8 --socket-dir {at}'"
        )
        .into()
    })
}

impl Disks {
    /// How many there are, where `wanted` are wanted.
    pub(super) fn count(&self, wanted: usize) -> usize {
        match self {
            Disks::Local(_) => wanted,
            Disks::Remote(_, devices) => devices.len(),
        }
    }

    /// Attaches them, `slots` of them; gives the bytes of their volume, too.
    pub(super) fn attach(
        self,
        service: &Service,
        slots: usize,
    ) -> Result<(DiskEngine, u64), Failure> {
        let (path, devices) = match self {
            Disks::Local(volume) => {
                let engine = DiskEngine::attach(service, &volume, slots)?;
                return Ok((engine, volume.bytes()));
            }
            Disks::Remote(path, devices) => (path, devices),
        };
        let mut engine = DiskEngine::over(service, devices.into_iter().map(DeviceSpec::remote))?;
        let blocks: Vec<u32> = (0..slots)
            .map(|slot| engine.blocks(slot, PATIENCE))
            .collect::<Result<_, _>>()
            .map_err(|error| format!("{}: {error}", path.display()))?;
        let first = blocks[0];
        if let Some(other) = blocks.iter().find(|blocks| **blocks != first) {
            return Err(format!(
                "{}: disks of {first} and of {other} blocks, which are not one volume; name one socket",
                path.display()
            )
            .into());
        }
        Ok((engine, u64::from(first) * BLOCK))
    }
}
