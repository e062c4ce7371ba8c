//! A device that does what the case says, and looks at everything it is given.

use vfio_ccw::architecture::{CommandClass, DeviceStatus, command};
use vfio_ccw::channel_subsystem::{Data, Device, Ending, Extent, Sense};
use vfio_ccw_metrics::DeviceClass;
use vfio_ccw_pinning::HostRange;

use crate::guest::{Contents, Guest};

/// Sense bytes with a unit check.
const SENSE_BYTES: u8 = 24;
/// Bytes a command moves at most, and commands before the device has had enough: a case must not
/// take seconds because its program loops.
const MOST_BYTES: usize = 80_000;
const MOST_COMMANDS: usize = 64;

/// One command as the device saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// Its code.
    pub code: u8,
    /// Bytes that were moved or skipped.
    pub moved: usize,
    /// What was fetched.
    pub fetched: Contents,
}

/// What judges each piece of memory that the device is given: offset in all regions, length, and
/// whether the device stores there.
pub type Judge<'a> = &'a dyn Fn(usize, usize, bool);

/// Answers command after command as eight bytes say, over and over.
pub struct Scripted<'a> {
    script: [u8; 8],
    class: DeviceClass,
    guest: &'a mut Guest,
    judge: Judge<'a>,
    /// Commands so far.
    pub log: Vec<Command>,
    /// Times that a program began.
    pub begun: u32,
    /// Guest memory that was given: offset in all regions, length, and whether it was stored into.
    pub touches: Vec<(usize, usize, bool)>,
    /// Bytes of the shadow that commands which define extents may take their parameters from.
    pub parameters: usize,
}

impl<'a> Scripted<'a> {
    /// A device of class `class` on the memory of `guest`.
    pub fn new(
        script: [u8; 8],
        class: DeviceClass,
        guest: &'a mut Guest,
        judge: Judge<'a>,
    ) -> Self {
        Scripted {
            script,
            class,
            guest,
            judge,
            log: Vec::new(),
            begun: 0,
            touches: Vec::new(),
            parameters: 0,
        }
    }

    /// The memory it works on.
    pub fn guest(&mut self) -> &mut Guest {
        self.guest
    }

    fn amount(step: u8) -> Option<usize> {
        Some(match step & 7 {
            // As much as there is, or one more than that.
            0 | 1 => return None,
            2 => 0,
            3 => 7,
            4 => 16,
            5 => 512,
            6 => 4097,
            _ => 70_000,
        })
    }

    fn ending(code: u8, step: u8) -> Ending {
        let more = |status| Ending { status: Ending::done().status | status, ..Ending::done() };
        match step >> 3 & 7 {
            0 => Ending::done(),
            1 => Ending::immediate(),
            2 => Ending::unit_check(),
            3 => more(DeviceStatus::UNIT_EXCEPTION),
            5 => more(DeviceStatus::ATTENTION),
            6 => Ending { status: DeviceStatus::BUSY, immediate: true },
            // The architecture has status modifier for searches.
            _ if command::is_search(code) => more(DeviceStatus::STATUS_MODIFIER),
            _ => Ending::done(),
        }
    }

    /// Moves `amount` bytes, all there are if `None`, at most `most` at a time.
    fn move_data(&mut self, code: u8, data: &mut Data<'_>, amount: Option<usize>, most: usize) {
        let mut left = amount.unwrap_or(MOST_BYTES);
        while left > 0 && !(amount.is_none() && data.is_at_end()) {
            let asked = left.min(most);
            let Some(extent) = data.next(asked) else {
                break;
            };
            let len = extent.len();
            assert!((1..=asked).contains(&len), "asked for {asked} bytes, given {len}");
            left -= len;
            if let Extent::Memory(range) = extent {
                self.touch(code, range);
            }
            let command = self.log.last_mut().expect("a command is running");
            command.moved += len;
        }
    }

    fn touch(&mut self, code: u8, range: HostRange) {
        let stores = CommandClass::of(code).stores();
        let Some(offset) = self.guest.offset_of(range) else {
            let copied = !stores && self.guest.is_shadow(range, self.parameters);
            assert!(copied, "command {code:02x} was given memory that is not the guest's");
            return self.fetch(range);
        };
        (self.judge)(offset, range.len(), stores);
        self.touches.push((offset, range.len(), stores));
        if stores {
            // The same bytes however the area is cut: what a piece holds depends on the command only.
            let filler = vec![0x80 | self.log.len() as u8; range.len()];
            range.write(0, &filler);
            self.guest.expect(offset, &filler);
        } else {
            self.fetch(range);
        }
    }

    fn fetch(&mut self, range: HostRange) {
        let fetched = &mut self.log.last_mut().expect("a command is running").fetched.0;
        let before = fetched.len();
        fetched.resize(before + range.len(), 0);
        assert!(range.read(0, &mut fetched[before..]));
    }
}

impl std::fmt::Debug for Scripted<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scripted").field("log", &self.log).finish_non_exhaustive()
    }
}

impl Device for Scripted<'_> {
    fn class(&self) -> DeviceClass {
        self.class
    }

    fn begin(&mut self) {
        self.begun += 1;
    }

    async fn command(&mut self, code: u8, data: &mut Data<'_>) -> Ending {
        let step = self.script[self.log.len() % self.script.len()];
        self.log.push(Command { code, ..Command::default() });
        if self.log.len() > MOST_COMMANDS {
            return Ending::unit_check();
        }
        let ending = Scripted::ending(code, step);
        // CONTROL NO-OPERATION moves no data at any device, so its area is not held.
        if ending.immediate || code == command::NOP {
            return ending;
        }
        let most = if step & 0x80 != 0 { 100 } else { usize::MAX };
        let amount = Scripted::amount(step);
        if step & 0x40 != 0 {
            // As a disk does whose transfer failed: what was moved was not used after all.
            let mark = data.mark();
            self.move_data(code, data, amount, most);
            data.go_back(mark);
            let command = self.log.last_mut().expect("pushed above");
            *command = Command { code, ..Command::default() };
        }
        self.move_data(code, data, amount, most);
        if step & 7 == 1 {
            // One more than the area has, unless it was too large to get there.
            let _ = data.next(1);
        }
        ending
    }

    fn take_sense(&mut self) -> Sense {
        Sense::new(Sense::INTERVENTION_REQUIRED, 0, SENSE_BYTES)
    }
}
