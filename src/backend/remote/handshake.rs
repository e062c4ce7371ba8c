//! What comes before anything else on a connection: which version, and whether there is a channel device.

use std::os::unix::net::UnixStream;

use tokio::time::timeout;
use zerocopy::{FromBytes, IntoBytes};

use crate::architecture::Schib;
use crate::backend::{
    AsyncRegion, CrwRegion, DeviceInfo as VfioInfo, IoRegion, Irq, IrqInfo, RegionIndex,
    RegionType, SchibRegion,
};
use crate::vfio_user::{
    Access, Capabilities, Command, DeviceInfo, Version, VersionError, Wire, lane,
};

use super::conversation::Conversation;
use super::{PATIENCE, ServerFault};

/// What a server said of its device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Greeted {
    pub(super) schib: Schib,
    /// It knows the lane, and this is the number that its process has drawn.
    pub(super) lane: Option<u64>,
    /// The device can be reset.
    pub(super) can_reset: bool,
    /// It reports channel paths.
    pub(super) has_reports: bool,
}

/// Agrees on a version and looks at the device. `None`: the server takes too long.
pub(super) async fn greet(
    stream: UnixStream,
) -> Result<(UnixStream, Greeted), Option<ServerFault>> {
    let greeting = async {
        let mut talk = Conversation::new(Wire::new(stream)?);
        let greeted = look(&mut talk).await?;
        Ok((talk.into_wire().into_std()?, greeted))
    };
    match timeout(PATIENCE, greeting).await {
        Ok(greeted) => greeted.map_err(Some),
        Err(_) => Err(None),
    }
}

/// The same on a connection that stays with this runtime.
pub(super) async fn look(talk: &mut Conversation<()>) -> Result<Greeted, ServerFault> {
    let ours = Capabilities {
        max_msg_fds: Some(1),
        max_data_xfer_size: Some(1 << 20),
        max_dma_maps: Some(65_535),
        pgsizes: Some(4096),
        lane: Some(lane::VERSION),
        lane_server: None,
    };
    let offer = ours.to_payload(Version::OURS);
    let (payload, _) = talk.must("the version", Command::Version, &offer, None).await?;
    let (version, theirs) = Capabilities::read(&payload)?;
    if version > Version::OURS {
        return Err(VersionError::Minor { theirs: version }.into());
    }
    let size = size_of::<DeviceInfo>() as u32;
    let asked = DeviceInfo { argsz: size, ..DeviceInfo::default() };
    let what = "to say what its device is";
    let (payload, _) = talk.must(what, Command::DeviceGetInfo, asked.as_bytes(), None).await?;
    let info: DeviceInfo = read(&payload, "device information")?;
    if info.flags & VfioInfo::CCW == 0 {
        return Err(ServerFault::NotCcw { flags: info.flags });
    }
    region(talk, RegionIndex::Io, "I/O", size_of::<IoRegion>()).await?;
    region(talk, RegionIndex::Async, "asynchronous-command", size_of::<AsyncRegion>()).await?;
    region(talk, RegionIndex::Schib, "SCHIB", size_of::<SchibRegion>()).await?;
    let reports = region(talk, RegionIndex::Crw, "CRW", size_of::<CrwRegion>()).await;
    if !has_eventfd(talk, Irq::Io).await? {
        return Err(ServerFault::NoInterrupt);
    }
    let has_reports = reports.is_ok() && has_eventfd(talk, Irq::Crw).await?;
    let access = Access {
        offset: 0,
        region: RegionIndex::Schib as u32,
        count: size_of::<SchibRegion>() as u32,
    };
    let what = "to show its subchannel";
    let (payload, _) = talk.must(what, Command::RegionRead, access.as_bytes(), None).await?;
    let (_, region) = Access::read_from_prefix(&payload).map_err(|_| short("a region"))?;
    let region: SchibRegion = read(region, "the SCHIB region")?;
    Ok(Greeted {
        schib: region.schib,
        lane: theirs.lane_server.filter(|_| theirs.lane == Some(lane::VERSION)),
        can_reset: info.flags & VfioInfo::RESET != 0,
        has_reports,
    })
}

fn short(what: &str) -> ServerFault {
    ServerFault::Protocol { what: format!("a reply with {what} that is not as long as that") }
}

fn read<T: FromBytes>(payload: &[u8], what: &str) -> Result<T, ServerFault> {
    T::read_from_bytes(payload).map_err(|_| short(what))
}

/// Whether a region is what it must be.
async fn region(
    talk: &mut Conversation<()>,
    index: RegionIndex,
    name: &'static str,
    expected: usize,
) -> Result<(), ServerFault> {
    let number = index as u32;
    let wrong = ServerFault::Region { index: number, name, expected };
    // argsz, flags, index, cap_offset, size, offset.
    let asked = [48, 0, number, 0, 0, 0, 0, 0u32];
    let payload = match talk.hear(Command::DeviceGetRegionInfo, asked.as_bytes(), None).await? {
        Ok((payload, _)) => payload,
        Err(_) => return Err(wrong),
    };
    let (head, rest) =
        <[u32; 4]>::read_from_prefix(&payload).map_err(|_| short("region information"))?;
    let (size, _) = u64::read_from_prefix(rest).map_err(|_| short("region information"))?;
    let is_kind = index == RegionIndex::Io || {
        let at = head[3] as usize;
        let capability =
            payload.get(at..).and_then(|bytes| RegionType::read_from_prefix(bytes).ok());
        capability.is_some_and(|(capability, _)| {
            at != 0
                && capability.id.get() == RegionType::ID
                && (capability.kind.get(), capability.subtype.get()) == (RegionType::CCW, number)
        })
    };
    if is_kind && size == expected as u64 { Ok(()) } else { Err(wrong) }
}

async fn has_eventfd(talk: &mut Conversation<()>, irq: Irq) -> Result<bool, ServerFault> {
    let size = size_of::<IrqInfo>() as u32;
    let asked = [size, 0, irq as u32, 0];
    let answer = talk.hear(Command::DeviceGetIrqInfo, asked.as_bytes(), None).await?;
    let Ok((payload, _)) = answer else { return Ok(false) };
    let info: IrqInfo = read(&payload, "interrupt information")?;
    Ok(info.flags.get() & IrqInfo::EVENTFD != 0 && info.count == 1)
}
