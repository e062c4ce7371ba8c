//! The pinner against devices that keep to the protocol, and against such that do not.

use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use super::model::{Device, Say, connect, scripted};
use super::*;
use crate::FRAME;
use crate::pinner::contract::{self, Windows};
use crate::pinner::guest::{Guest, START};

fn pinner(most_windows: u32) -> (VfioUser, Device) {
    let device = Device::new(most_windows);
    let serving = device.clone();
    (connect(most_windows, move |stream| serving.serve(stream)), device)
}

fn inner(stopped: &Stopped) -> &VfioUserError {
    stopped.source.get_ref().and_then(|error| error.downcast_ref()).expect("a VfioUserError")
}

#[test]
fn the_device_sees_the_guests_bytes_and_the_guest_the_devices() {
    let guest = Guest::in_file(16);
    for frame in 0..16 {
        let address = START + frame * FRAME;
        assert!(guest.map().write(address + 8, &(0xab00 + frame).to_ne_bytes()));
    }
    let (pinner, device) = pinner(8);
    pinner.pin(&guest.runs(&[(3, 1), (4, 1), (9, 4)])).unwrap();
    let seen = |frame: u64| device.read(START + frame * FRAME + 8);
    for frame in [3, 4, 9, 10, 11, 12] {
        assert_eq!(seen(frame), Some(0xab00 + frame));
    }
    assert_eq!((seen(2), seen(5), seen(8), seen(13)), (None, None, None, None));
    device.write(START + 11 * FRAME, 0x1234_5678);
    let mut bytes = [0; 8];
    assert!(guest.map().read(START + 11 * FRAME, &mut bytes));
    assert_eq!(u64::from_ne_bytes(bytes), 0x1234_5678);
    assert_eq!(pinner.most_runs(), Some(8));
    assert!(pinner.is_needed() && !pinner.joins_frames() && !pinner.keeps_place());
}

#[test]
fn refusals_stop_at_the_exact_run_and_the_connection_goes_on() {
    let guest = Guest::in_file(8);
    let (pinner, device) = pinner(3);
    let stopped = pinner.pin(&guest.runs(&[(0, 1), (2, 1), (1, 2), (5, 1)])).unwrap_err();
    assert_eq!((stopped.done, stopped.source.kind()), (2, io::ErrorKind::AlreadyExists));
    assert!(matches!(inner(&stopped), VfioUserError::Map { .. }), "{stopped:?}");
    assert_eq!(device.windows().len(), 2);

    let stopped = pinner.pin(&guest.runs(&[(5, 1), (6, 1), (7, 1)])).unwrap_err();
    assert_eq!((stopped.done, stopped.source.kind()), (1, io::ErrorKind::StorageFull));
    assert!(stopped.source.to_string().contains("budget"), "{}", stopped.source);

    let stopped = pinner.unpin(&guest.runs(&[(0, 1), (2, 2), (5, 1)])).unwrap_err();
    assert_eq!((stopped.done, stopped.source.kind()), (1, io::ErrorKind::NotFound));
    assert!(matches!(inner(&stopped), VfioUserError::Unmap { .. }), "{stopped:?}");
    pinner.unpin(&guest.runs(&[(2, 1), (5, 1)])).unwrap();
    assert_eq!(device.windows(), Windows::new());
}

#[test]
fn a_file_that_is_too_short_is_the_devices_to_refuse() {
    let guest = Guest::in_file(8);
    let map = guest.map();
    let file = map.regions()[0].file().unwrap().file();
    let (pinner, _) = pinner(8);
    pinner.pin(&guest.runs(&[(7, 1)])).unwrap();
    pinner.unpin(&guest.runs(&[(7, 1)])).unwrap();
    let len = file.metadata().unwrap().len();
    file.set_len(len - FRAME).unwrap();
    let stopped = pinner.pin(&guest.runs(&[(6, 1), (7, 1)])).unwrap_err();
    assert_eq!((stopped.done, stopped.source.kind()), (1, io::ErrorKind::InvalidInput));
}

#[test]
fn memory_without_a_file_is_refused_before_anything_is_sent() {
    let guest = Guest::new(4);
    let (pinner, device) = pinner(8);
    let stopped = pinner.pin(&guest.runs(&[(0, 1)])).unwrap_err();
    assert_eq!(stopped.done, 0);
    assert!(matches!(inner(&stopped), VfioUserError::NoFile { start: START }));
    assert!(stopped.source.to_string().contains("memfd"), "{}", stopped.source);
    let backed = Guest::in_file(4);
    pinner.pin(&backed.runs(&[(0, 1)])).unwrap();
    assert_eq!(device.windows().len(), 1, "the connection was not touched");
}

#[test]
fn a_run_outside_its_region_is_refused() {
    let guest = Guest::in_file(4);
    let (pinner, _) = pinner(8);
    let inside = guest.run(3, 1);
    for address in [START - FRAME, START + 4 * FRAME, START + 3 * FRAME + 1, 0, u64::MAX] {
        let stopped = pinner.pin(&[inside, Run { address, ..inside }]).unwrap_err();
        assert_eq!(stopped.done, 1);
        assert!(matches!(inner(&stopped), VfioUserError::Outside { .. }), "{stopped:?}");
        pinner.unpin(&[inside]).unwrap();
    }
    assert_eq!(offset(&inside, i64::MAX as u64 - 4 * FRAME + 1), None, "no file is that long");
    assert_eq!(offset(&inside, u64::MAX), None);
}

/// Every answer that is not one stops the pinner where it was, and for good.
#[test]
fn a_device_that_lies_is_given_up() {
    type Lie = fn(&Header) -> Vec<u8>;
    let lies: &[(&str, Lie)] = &[
        ("another number", |sent| bytes(Header { id: sent.id.wrapping_add(1), ..sent.reply(0) })),
        ("another command", |sent| bytes(Header { command: 3, ..sent.reply(0) })),
        ("a command", |sent| bytes(*sent)),
        ("no known type", |sent| bytes(Header { flags: 7, ..sent.reply(0) })),
        ("size 0", |sent| bytes(Header { size: 0, ..sent.reply(0) })),
        ("size 15", |sent| bytes(Header { size: 15, ..sent.reply(0) })),
        ("a payload", |sent| [bytes(sent.reply(8)), vec![0; 8]].concat()),
        ("4 GiB", |sent| bytes(Header { size: u32::MAX, ..sent.reply(0) })),
        ("an error with a payload", |sent| {
            [bytes(Header { size: 24, ..sent.refusal(17) }), vec![0; 8]].concat()
        }),
    ];
    for &(name, lie) in lies {
        let guest = Guest::in_file(4);
        let honest_once = move |sent: &Header, _: &[u8]| {
            Say::This(if sent.id == 0 { bytes(sent.reply(0)) } else { lie(sent) })
        };
        let pinner = connect(8, scripted(honest_once));
        let stopped = pinner.pin(&guest.runs(&[(0, 1), (1, 1), (2, 1)])).unwrap_err();
        assert_eq!(stopped.done, 1, "{name}");
        assert_eq!(stopped.source.kind(), io::ErrorKind::InvalidData, "{name}");
        assert!(matches!(inner(&stopped), VfioUserError::Fault(_)), "{name}: {stopped:?}");
        let stopped = pinner.unpin(&guest.runs(&[(0, 1)])).unwrap_err();
        assert_eq!(stopped.done, 0, "{name}");
        assert!(matches!(inner(&stopped), VfioUserError::GivenUp), "{name}: {stopped:?}");
    }
}

#[test]
fn an_unmap_of_something_else_is_a_lie() {
    let guest = Guest::in_file(4);
    let pinner = connect(
        8,
        scripted(|sent, payload| {
            let Ok(mut unmap) = DmaUnmap::read_from_bytes(payload) else {
                return Say::This(bytes(sent.reply(0)));
            };
            unmap.size += FRAME;
            Say::This([&bytes(sent.reply(24)), unmap.as_bytes()].concat())
        }),
    );
    let runs = guest.runs(&[(0, 1), (1, 1)]);
    pinner.pin(&runs).unwrap();
    let stopped = pinner.unpin(&runs).unwrap_err();
    assert_eq!(stopped.done, 0);
    assert!(matches!(inner(&stopped), VfioUserError::Fault(Fault::Range { .. })), "{stopped:?}");
    assert!(matches!(inner(&pinner.pin(&runs).unwrap_err()), VfioUserError::GivenUp));
}

#[test]
fn half_a_message_is_a_transport_error() {
    for kept in [0, 1, 15, 16, 39] {
        let guest = Guest::in_file(4);
        let pinner = connect(
            8,
            scripted(move |sent, payload| {
                if sent.command == Command::DmaMap as u16 {
                    return Say::This(bytes(sent.reply(0)));
                }
                let whole = [&bytes(sent.reply(24)), payload].concat();
                Say::Last(whole[..kept].to_vec())
            }),
        );
        let runs = guest.runs(&[(0, 1), (1, 1)]);
        pinner.pin(&runs).unwrap();
        let stopped = pinner.unpin(&runs).unwrap_err();
        assert_eq!(stopped.done, 0, "{kept}");
        assert_eq!(stopped.source.kind(), io::ErrorKind::UnexpectedEof, "{kept}");
        assert!(matches!(inner(&stopped), VfioUserError::Transport(_)), "{kept}: {stopped:?}");
        let stopped = pinner.pin(&runs).unwrap_err();
        assert!(matches!(inner(&stopped), VfioUserError::GivenUp), "{kept}: {stopped:?}");
    }
}

#[test]
fn surplus_bytes_are_found_out_at_the_next_answer() {
    let guest = Guest::in_file(4);
    let surplus =
        |sent: &Header, _: &[u8]| Say::This([bytes(sent.reply(0)), vec![0xff; 16]].concat());
    let pinner = connect(8, scripted(surplus));
    let stopped = pinner.pin(&guest.runs(&[(0, 1), (1, 1)])).unwrap_err();
    assert_eq!(stopped.done, 1);
    assert!(matches!(inner(&stopped), VfioUserError::Fault(_)), "{stopped:?}");
}

#[test]
fn error_numbers_of_any_size_are_errors_and_the_connection_goes_on() {
    let guest = Guest::in_file(4);
    let errors = [17, 0, 4096, u32::MAX, 1];
    let pinner = connect(
        8,
        scripted(move |sent, _| Say::This(bytes(sent.refusal(errors[usize::from(sent.id)])))),
    );
    for errno in errors {
        let stopped = pinner.pin(&guest.runs(&[(0, 1)])).unwrap_err();
        let VfioUserError::Map { source, .. } = inner(&stopped) else {
            panic!("{errno}: {stopped:?}");
        };
        let known = matches!(errno, 17 | 1).then_some(errno as i32);
        assert_eq!(source.raw_os_error(), known, "{errno}");
    }
}

#[test]
fn message_numbers_go_round() {
    let guest = Guest::in_file(1);
    let (pinner, device) = pinner(8);
    pinner.connection.lock().next_id = u16::MAX - 1;
    let runs = guest.runs(&[(0, 1)]);
    for _ in 0..2 {
        pinner.pin(&runs).unwrap();
        pinner.unpin(&runs).unwrap();
    }
    assert_eq!((pinner.connection.lock().next_id, device.windows().len()), (2, 0));
}

fn bytes(header: Header) -> Vec<u8> {
    header.as_bytes().to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn windows_are_what_is_pinned(steps in contract::steps(32), most in 6..40u32) {
        let guest = Guest::in_file(32);
        let (pinner, device) = pinner(most);
        contract::holds(&pinner, &guest, &steps, || device.windows())?;
    }

    /// Headers of which each field is right or wrong: only the right one pins, and only a refusal
    /// leaves the connection of use.
    #[test]
    fn random_answers_are_taken_for_what_they_say(
        id in prop_oneof![3 => Just(0u16), 1 => any::<u16>()],
        command in prop_oneof![3 => Just(2u16), 1 => any::<u16>()],
        size in prop_oneof![3 => Just(16u32), 1 => any::<u32>()],
        flags in prop_oneof![2 => Just(1u32), 2 => Just(0x21), 1 => any::<u32>()],
        error in any::<u32>(),
    ) {
        let guest = Guest::in_file(4);
        let answer = Header { id, command, size, flags, error };
        let pinner = connect(8, scripted(move |_, _| Say::This(bytes(answer))));
        let fits = (id, command, size, flags & 0xf) == (0, 2, 16, 1);
        let failed = flags & 0x20 != 0;
        match pinner.pin(&guest.runs(&[(0, 1)])) {
            Ok(()) => prop_assert!(fits && !failed, "{:?}", answer),
            Err(stopped) => {
                prop_assert_eq!(stopped.done, 0);
                let refused = matches!(inner(&stopped), VfioUserError::Map { .. });
                prop_assert_eq!(refused, fits && failed, "{:?}: {:?}", answer, stopped);
                prop_assert_eq!(pinner.connection.lock().given_up, !refused);
            }
        }
    }
}
