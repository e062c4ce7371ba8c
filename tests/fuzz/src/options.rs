//! Words on the command line: each is read or refused with a reason, and what is read can be used.

use vfio_ccw::{DriverChoice, Mode};
use vfio_ccw_load::{Buffers, Workload, parse_bytes};

use crate::command_line::Options;

/// Most slots and volume that a load is tried with: beyond, only memory is tested.
const SLOTS: usize = 64;

/// One case: words, one a line.
pub fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for word in text.lines() {
        one_word(word);
    }
    match Options::read(text.lines()) {
        Ok(options) => job(&options),
        Err(reason) => assert!(!reason.trim().is_empty(), "refused without a reason"),
    }
}

fn one_word(word: &str) {
    match parse_bytes(word) {
        Ok(bytes) => assert_eq!(parse_bytes(&bytes.to_string()), Ok(bytes)),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    match word.parse::<Mode>() {
        Ok(mode) => assert_eq!(mode.to_string(), word),
        Err(error) => assert!(error.to_string().contains(word)),
    }
    if let Err(error) = word.parse::<DriverChoice>() {
        assert!(error.to_string().contains(word));
    }
}

/// What these options ask for can be drawn, and lies on the volume.
fn job(options: &Options) {
    // The service is not built: that would make its threads.
    let _ = format!("{:?}", options.builder());
    let Ok(block_bytes) = u32::try_from(options.block) else { return };
    let slots = options.subchannels.min(SLOTS);
    let workload = Workload {
        read_percent: options.read_percent,
        access: options.access,
        buffers: Buffers {
            access: options.access,
            ..Workload::new(options.size, block_bytes).buffers
        },
        ..Workload::new(options.size, block_bytes)
    };
    match workload.generator(slots) {
        Ok(mut generator) => {
            for slot in (0..slots).cycle().take(4 * slots) {
                let request = generator.next(slot);
                let end = request.offset.checked_add(request.bytes.into());
                assert!(end.is_some_and(|end| end <= options.size), "{request:?}");
                assert!(request.offset.is_multiple_of(512), "{request:?}");
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
