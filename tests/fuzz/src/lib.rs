//! Fuzz targets: one for each place where something hostile comes in.
//!
//! Each target is a function over bytes in this library; the programs in `targets/` give it to
//! libFuzzer, and the tests replay the committed seeds with it, without any fuzzer.
//!
//! | target | what is hostile |
//! |---|---|
//! | [`channel_program`] | a guest's program, translated |
//! | [`unfetched_program`] | a guest's program, read by the channel as it runs |
//! | [`fba_disk`] | a guest's program for a disk, through a whole service |
//! | [`policy`] | a guest that wants what the VMM's policy does not allow |
//! | [`io_region`] | whoever writes the I/O region |
//! | [`decode`] | bytes to show as status blocks, CCWs and listings |
//! | [`options`] | words on the command line |
//! | [`vfio_user`] | a device in another process that is given windows |
//! | [`vfio_user_server`] | a client in another process that uses a device |
//! | [`vfio_user_client`] | the server of a device |
//! | [`vfio_user_inbox`] | bytes of a connection, in pieces |
//! | [`vfio_user_version`] | what the other side says that it can |
//! | [`lane`] | who shares the memory that programs go over |
//!
//! The rest is what they share: [`input`] and [`case`] make a case of bytes, [`guest`] is memory in
//! which every byte is accounted for, [`scripted`] a device, [`bench`] runs programs,
//! [`reachable`] and [`status`] say what they may end with, and [`mutation`] knows where a case has
//! its CCWs.

pub mod bench;
pub mod block_on;
pub mod case;
pub mod channel_program;
pub mod command_line;
pub mod decode;
pub mod fba_disk;
pub mod guest;
pub mod input;
pub mod io_region;
pub mod lane;
pub mod mutation;
pub mod options;
pub mod policy;
pub mod reachable;
pub mod scripted;
pub mod seeds;
pub mod status;
pub mod unfetched_program;
pub mod vfio_user;
pub mod vfio_user_client;
pub mod vfio_user_inbox;
pub mod vfio_user_server;
pub mod vfio_user_version;
