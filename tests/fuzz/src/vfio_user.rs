//! A device in another process that answers DMA_MAP and DMA_UNMAP with whatever it likes: the pinner
//! takes it for what it says, and gives the connection up when it makes no sense.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use vfio_ccw_pinning::pinner::vfio_user::message::{HEADER, Header};
use vfio_ccw_pinning::pinner::vfio_user::{Peer, VfioUser, VfioUserError};
use vfio_ccw_pinning::pinner::{Pinner, Run, Stopped};
use vfio_ccw_pinning::{FRAME, GuestMap};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
use zerocopy::{FromBytes, IntoBytes};

use crate::input::Input;

/// Frames of the guest.
const FRAMES: u32 = 16;

/// One case: for each call a byte that says what and how many frames, and the device's answers.
pub fn run(bytes: &[u8]) {
    let map = guest();
    let script = Arc::new(Mutex::new(Script { left: bytes.to_vec(), ..Script::default() }));
    let pinner = VfioUser::new(Device(script.clone()), FRAMES);
    let mut given_up = false;
    loop {
        let next = script.lock().expect("no panic").take();
        let Some(call) = next else { return };
        let frames = u32::from(call & 0x0f).min(FRAMES);
        let runs: Vec<Run<'_>> = (0..frames).map(|frame| one_frame(&map, frame)).collect();
        let sent = script.lock().expect("no panic").sent;
        let result = if call & 0x80 == 0 { pinner.pin(&runs) } else { pinner.unpin(&runs) };
        let sent = script.lock().expect("no panic").sent - sent;
        match result {
            Ok(()) => assert_eq!(sent, runs.len(), "a success for each exchange, and no other"),
            Err(Stopped { done, source }) => {
                assert!(done < runs.len(), "stopped at {done} of {}", runs.len());
                let text = source.to_string();
                assert!(!text.is_empty() && text.len() < 1000, "{text}");
                let error = source.get_ref().and_then(|error| error.downcast_ref());
                let was_given_up = given_up;
                match error.expect("an error of the protocol") {
                    VfioUserError::GivenUp => assert!(was_given_up, "given up for no reason"),
                    VfioUserError::Fault(_) | VfioUserError::Transport(_) => given_up = true,
                    _ => {}
                }
                assert_eq!(sent, if was_given_up { 0 } else { done + 1 });
            }
        }
    }
}

fn guest() -> GuestMap {
    let memfd = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
    let file = File::from(memfd);
    let bytes = FRAME * u64::from(FRAMES);
    file.set_len(bytes).expect("some pages");
    let range = (GuestAddress(0), bytes as usize, Some(FileOffset::new(file, 0)));
    let memory = GuestMemoryMmap::<()>::from_ranges_with_files([range]).expect("a mapping");
    GuestMap::new(Arc::new(memory)).expect("one region")
}

fn one_frame(map: &GuestMap, frame: u32) -> Run<'_> {
    let region = &map.regions()[0];
    let address = u64::from(frame) * FRAME;
    let host = map.bytes_from(address, FRAME as usize).expect("guest memory");
    Run { address, host, frame, frames: 1, region }
}

/// The device: what it was sent last, and what it has to say.
struct Device(Arc<Mutex<Script>>);

#[derive(Default)]
struct Script {
    left: Vec<u8>,
    at: usize,
    sent: usize,
    message: Vec<u8>,
    reply: Vec<u8>,
}

impl Script {
    fn take(&mut self) -> Option<u8> {
        let byte = self.left.get(self.at).copied();
        self.at += 1;
        byte
    }

    /// The answer to the message sent last; `None`: the connection breaks.
    fn answer(&mut self) -> Option<Vec<u8>> {
        let (header, payload) = Header::read_from_prefix(&self.message).ok()?;
        // A DMA_UNMAP is repeated in its answer, a DMA_MAP is not.
        let repeated = if payload.len() == 24 { payload } else { &[] };
        let mut honest = header.reply(repeated.len() as u32).as_bytes().to_vec();
        honest.extend_from_slice(repeated);
        let kind = self.take().unwrap_or(0);
        let mut input = Input::new(self.left.get(self.at..).unwrap_or_default());
        match kind % 5 {
            0 => {}
            1 => {
                let place = usize::from(input.u8()) % honest.len();
                honest[place] ^= input.u8();
                self.at += 2;
            }
            2 => {
                let errno = u32::from_le_bytes(input.array());
                self.at += 4;
                honest = header.refusal(errno).as_bytes().to_vec();
            }
            3 => {
                honest = input.array::<{ HEADER + 24 }>().to_vec();
                self.at += HEADER + 24;
            }
            _ => return None,
        }
        Some(honest)
    }
}

impl Peer for Device {
    fn send(&mut self, message: &[u8], file: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut script = self.0.lock().expect("no panic");
        assert_eq!(file.is_some(), message.len() == HEADER + 32, "a file with each DMA_MAP");
        script.sent += 1;
        script.message = message.to_vec();
        script.reply = script.answer().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(())
    }

    fn receive(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let mut script = self.0.lock().expect("no panic");
        if script.reply.len() < bytes.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let rest = script.reply.split_off(bytes.len());
        bytes.copy_from_slice(&script.reply);
        script.reply = rest;
        Ok(())
    }
}
