//! Saving a service at rest, and restoring one.

use std::sync::mpsc;
use std::time::Duration;

use crate::architecture::Crw;
use crate::channel_subsystem::DeviceState;

use super::quiesce::Rest;
use super::state::{SubchannelState, words};
use super::{Service, ServiceState, StartState, StateError, SuspendedState};

/// Why a service cannot be saved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SaveError {
    /// Programs may run.
    #[error("programs may run: call quiesce before")]
    NotQuiet,
    /// Futures wait for programs, and futures stay where they are.
    #[error(
        "futures wait for programs of subchannel {number:#x}, and cannot be saved: await or drop them before quiesce"
    )]
    Futures {
        /// Number of the subchannel.
        number: u32,
    },
    /// A device is the host's, or another process has it: it cannot be taken elsewhere.
    #[error(
        "the device of subchannel {number:#x} is the host's, or another process has it, and stays where it is: detach it before"
    )]
    Host {
        /// Number of the subchannel.
        number: u32,
    },
    /// A shard has ended, and with it what it knew.
    #[error("shard {shard} has ended: its subchannels cannot be saved")]
    ShardGone {
        /// Its index.
        shard: usize,
    },
}

/// What a subchannel's task knows of it.
#[derive(Debug)]
pub(super) struct SavedTask {
    pub(super) number: u32,
    pub(super) starts: Vec<StartState>,
    pub(super) suspended: Option<SuspendedState>,
    /// `None`: nobody knows.
    pub(super) device: Option<DeviceState>,
    /// Of its programs that wait, some belong to futures.
    pub(super) has_futures: bool,
}

/// How long a shard at rest may take to answer.
pub(super) const ANSWER: Duration = Duration::from_secs(60);

impl Service {
    /// What the service consists of, to be restored in another one; it must be quiet
    /// ([`Service::quiesce`]), and no vCPU may issue instructions meanwhile. The service is as before.
    ///
    /// A VMM saves guest memory and images by itself, and calls [`Service::settle_memory`] before, if it
    /// has to. To restore, it builds a service, quiesces it, attaches each device with
    /// [`DeviceOptions::restore`](crate::DeviceOptions::restore), calls [`Service::restore`], and then
    /// [`Service::resume`].
    ///
    /// # Errors
    ///
    /// See [`SaveError`].
    pub fn save(&self) -> Result<ServiceState, SaveError> {
        let _span = tracing::info_span!("save").entered();
        let rest = self.rest.lock();
        if !matches!(*rest, Rest::Quiet) {
            return Err(SaveError::NotQuiet);
        }
        let (answer, answers) = mpsc::channel();
        self.shards.iter().for_each(|shard| shard.save(answer.clone()));
        drop(answer);
        let mut tasks = Vec::new();
        while let Ok(task) = answers.recv_timeout(ANSWER) {
            tasks.push(task);
        }
        tasks.sort_by_key(|task| task.number);
        let subchannels = (self.table.all())
            .map(|shared| {
                let number = shared.number();
                let found = tasks.binary_search_by_key(&number, |task| task.number);
                let Ok(found) = found else {
                    return Err(SaveError::ShardGone { shard: shared.shard() });
                };
                let SavedTask { starts, suspended, device, has_futures, .. } = &tasks[found];
                if *has_futures {
                    return Err(SaveError::Futures { number });
                }
                let Some(device) = device.clone() else { return Err(SaveError::Host { number }) };
                let (pmcw, saved) = shared.save();
                Ok(SubchannelState {
                    number,
                    pmcw: words(&pmcw),
                    control: saved.control.bits(),
                    status: words(&saved.status),
                    interrupts: saved.interrupts,
                    told: saved.told,
                    starts: starts.clone(),
                    suspended: *suspended,
                    device,
                })
            })
            .collect::<Result<_, _>>()?;
        let reports = self.reports.waiting().iter().map(Crw::word).collect();
        Ok(ServiceState::new(subchannels, reports, self.interruptions.enabled()))
    }

    /// Restores what of `state` belongs to no subchannel: channel reports, and which interruption
    /// subclasses are delivered. Triggers are told of what nobody was told of.
    ///
    /// # Errors
    ///
    /// [`StateError::Version`].
    pub fn restore(&self, state: &ServiceState) -> Result<(), StateError> {
        let _span = tracing::info_span!("restore", subchannels = state.subchannels.len()).entered();
        state.check_version()?;
        let reports: Vec<_> = state.reports.iter().map(|word| Crw::from_word(*word)).collect();
        self.reports.restore(&reports);
        self.enable_interruptions(0);
        self.enable_interruptions(state.enabled_subclasses);
        Ok(())
    }
}
