//! A service under a load of short programs, driven from one thread as a VMM's would be.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vfio_ccw::architecture::{Ccw, Orb};
use vfio_ccw::volume::Volume;
use vfio_ccw::{Completions, DeviceSpec, Service, Subchannel};
use vfio_ccw_load::closed_loop::{self, ClosedLoop, Limit};
use vfio_ccw_load::{Access, Buffers, Quiet, Workload};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::ratio::FieldError;

/// Guest memory in bytes.
const MEMORY: usize = 64 << 20;

/// Bytes that each program writes: one page, direct.
const DATA: u32 = 4096;

/// Looks at an empty completion ring before the driving thread sleeps: some microseconds.
const LOOKS: u32 = 64;

/// Pauses between two looks: a microsecond or so.
const PAUSES: u32 = 24;

/// Null devices with one program each: WRITE 4 KiB, everything on (translation, pool, metrics).
#[derive(Debug)]
pub struct NullLoad {
    // Before the service: its drop detaches them.
    subchannels: Vec<(Subchannel, Orb)>,
    completions: Completions,
    _service: Service,
}

impl NullLoad {
    /// `count` subchannels on one shard.
    ///
    /// # Errors
    /// Where the service does not start.
    pub fn new(count: usize) -> Result<Self, FieldError> {
        let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY)])?);
        let service =
            Service::builder().subchannels(count).budget(MEMORY as u64).build(memory.clone())?;
        let (delivery, completions) = Completions::ring(count.next_power_of_two())?;
        let mut subchannels = Vec::with_capacity(count);
        for index in 0..count as u32 {
            // A page of programs, then a page of data for each subchannel.
            let (program, data) = (index * 2 * DATA, (index * 2 + 1) * DATA);
            let write = Ccw::new(0x01, data, DATA as u16);
            memory.write_slice(&write.to_format_1(), GuestAddress(program.into()))?;
            let subchannel = service.attach(DeviceSpec::Null, delivery.clone())?;
            subchannels.push((subchannel, Orb::new(program)));
        }
        Ok(Self { subchannels, completions, _service: service })
    }

    /// Runs `ios` programs, one under way on each subchannel, and returns the time they took.
    ///
    /// # Errors
    /// Where a submission is refused or a program does not end cleanly.
    pub fn run(&mut self, ios: u64) -> Result<Duration, FieldError> {
        let start = Instant::now();
        let mut submitted = 0;
        for (index, (subchannel, orb)) in self.subchannels.iter().enumerate() {
            subchannel.submit(orb, index as u64)?;
            submitted += 1;
        }
        let (mut done, mut odd, mut empty) = (0, 0, 0);
        while done < submitted {
            let subchannels = &self.subchannels;
            let mut failed = None;
            let reaped = self.completions.reap(usize::MAX, |completion| {
                odd += u64::from(!completion.irb.scsw.is_clean_end());
                if submitted < ios {
                    let (subchannel, orb) = &subchannels[completion.user_data as usize];
                    match subchannel.submit(orb, completion.user_data) {
                        Ok(()) => submitted += 1,
                        Err(error) => failed = Some(error),
                    }
                }
            });
            done += reaped as u64;
            if let Some(error) = failed {
                return Err(error.into());
            }
            if reaped > 0 {
                empty = 0;
            } else if empty < LOOKS {
                empty += 1;
                // Let some gather: a look at every completion takes the ring's lines away from the
                // shard each time.
                (0..PAUSES).for_each(|_| std::hint::spin_loop());
            } else {
                // The shard may be waiting for this very core.
                self.completions.wait(None)?;
            }
        }
        let elapsed = start.elapsed();
        if odd > 0 {
            return Err(format!("{odd} of {done} programs did not end cleanly").into());
        }
        Ok(elapsed)
    }
}

/// FBA disks on a scratch volume under 4 KiB random reads and writes.
#[derive(Debug)]
pub struct DiskLoad {
    engine: vfio_ccw::engine::DiskEngine,
    workload: Workload,
    _service: Service,
    _scratch: tempfile::NamedTempFile,
}

impl DiskLoad {
    /// `count` disks on one volume of 32 MiB.
    ///
    /// # Errors
    /// Where there is no scratch space or the service does not start.
    pub fn new(count: usize, seed: u64) -> Result<Self, FieldError> {
        let scratch = tempfile::NamedTempFile::new()?;
        scratch.as_file().set_len(32 << 20)?;
        let volume = Arc::new(Volume::open(scratch.path(), false)?);
        let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY)])?);
        let service = Service::builder().subchannels(count).budget(MEMORY as u64).build(memory)?;
        let engine = vfio_ccw::engine::DiskEngine::attach(&service, &volume, count)?;
        let workload = Workload {
            read_percent: 70,
            buffers: Buffers {
                base: vfio_ccw::engine::DiskEngine::buffers_base(count),
                bytes_per_slot: 64 << 10,
                access: Access::Uniform,
            },
            seed,
            ..Workload::new(volume.bytes(), 4096)
        };
        Ok(Self { engine, workload, _service: service, _scratch: scratch })
    }

    /// Runs `ios` requests.
    ///
    /// # Errors
    /// Where a request fails or is lost.
    pub fn run(&mut self, ios: u64) -> Result<(), FieldError> {
        let job = ClosedLoop { limit: Limit::ios(ios), ..ClosedLoop::new(self.workload.clone()) };
        let stop = std::sync::atomic::AtomicBool::new(false);
        let report = closed_loop::run(&mut self.engine, &job, &mut Quiet, &stop)?;
        if !report.is_clean() {
            return Err(format!(
                "{} of {ios} requests failed or were lost",
                report.errors + report.lost
            )
            .into());
        }
        Ok(())
    }
}
