//! Frames as Go and Python make them, and garbage.

use super::*;
use proptest::prelude::*;

/// Made with Python's zlib and the dictionary: the two streams of one connection.
const ERROR_STREAM: &str = "800300010100003d0000000100000000000078f9e3c6a7c202253a703a2b294a4dcc85\
                            1625aca9a0808614cb45e01c6061606100a4398b20d198094ade8c0600000000ffff";
const DATA_STREAM: &str = "800300010000001800000003000000000000c2aa19540e2512d60b000000ffff";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn headers(stream_type: &str) -> Vec<(String, String)> {
    [("streamtype", stream_type), ("port", "8080"), ("requestid", "0")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

#[test]
fn header_blocks_share_one_stream() {
    let mut decoder = Decoder::new();
    let mut buffer = BytesMut::from(&bytes(ERROR_STREAM)[..]);
    buffer.extend_from_slice(&bytes(DATA_STREAM));
    let expected = Event::Open { stream: 1, headers: headers("error"), fin: true };
    assert_eq!(decoder.decode(&mut buffer), Ok(Some(expected)));
    let expected = Event::Open { stream: 3, headers: headers("data"), fin: false };
    assert_eq!(decoder.decode(&mut buffer), Ok(Some(expected)));
    assert_eq!(decoder.decode(&mut buffer), Ok(None));
}

#[test]
fn frames_may_come_byte_by_byte() {
    let mut decoder = Decoder::new();
    let mut all = bytes(ERROR_STREAM);
    all.extend(data(3, b"hello", true));
    all.extend(ping(7));
    all.extend(reset(3));
    let (mut buffer, mut events) = (BytesMut::new(), Vec::new());
    for byte in all {
        buffer.extend_from_slice(&[byte]);
        events.extend(decoder.decode(&mut buffer).unwrap());
    }
    let rest = [
        Event::Data { stream: 3, bytes: Bytes::from_static(b"hello"), fin: true },
        Event::Ping(7),
        Event::Reset { stream: 3 },
    ];
    assert_eq!(events[1..], rest);
}

#[test]
fn replies_are_what_a_client_reads() {
    let mut encoder = Encoder::default();
    let mut decoder = Decoder::new();
    // As the client's side reads them: both blocks inflate to "no fields".
    for stream in [1_u32, 3] {
        let frame = encoder.reply(stream);
        assert_eq!(frame[..4], [0x80, 3, 0, 2]);
        assert_eq!(decoder.headers(&frame[12..]), Ok(vec![]));
    }
}

#[test]
fn what_is_too_long_or_not_spdy_is_refused() {
    let check = |head: [u8; 8], expected: SpdyError| {
        let found = Decoder::new().decode(&mut BytesMut::from(&head[..]));
        assert_eq!(found, Err(expected));
    };
    check([0x80, 2, 0, 1, 0, 0, 0, 10], SpdyError::Version(2));
    check([0x80, 3, 0, 1, 0, 2, 0, 0], SpdyError::TooLong(0x2_0000));
    check([0, 0, 0, 1, 0, 0xff, 0, 0], SpdyError::TooLong(0xff_0000));
    check([0x80, 3, 0, 6, 0, 0, 0, 0], SpdyError::CutOff(6));
}

#[test]
fn a_block_that_grows_without_end_is_refused() {
    // Much of the same inflates a thousandfold: 8 MiB from a few KiB.
    use std::io::Write;
    let mut deflated = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    deflated.write_all(&vec![0; 8 << 20]).unwrap();
    let mut block = deflated.finish().unwrap();
    block.truncate(60_000);
    assert_eq!(Decoder::new().headers(&block), Err(SpdyError::Headers));
}

proptest! {
    #[test]
    fn garbage_never_panics(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..20)) {
        let mut decoder = Decoder::new();
        let mut buffer = BytesMut::new();
        for piece in pieces {
            buffer.extend_from_slice(&piece);
            while let Ok(Some(_)) = decoder.decode(&mut buffer) {}
        }
    }

    #[test]
    fn damaged_frames_never_panic(at in 0..80_usize, value in any::<u8>()) {
        let mut all = bytes(ERROR_STREAM);
        all.extend(bytes(DATA_STREAM));
        let at = at % all.len();
        all[at] = value;
        let mut decoder = Decoder::new();
        let mut buffer = BytesMut::from(&all[..]);
        while let Ok(Some(_)) = decoder.decode(&mut buffer) {}
    }
}
