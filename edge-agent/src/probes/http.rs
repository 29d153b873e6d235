//! `GET` of HTTP/1.1, as much of it as a probe needs: the status line, and where a
//! redirect leads. The body is never read.

use std::fmt::{self, Write as _};
use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{authority, connect, dial, tls, what};

/// Most bytes of an answer's head.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Most redirects that are followed.
const REDIRECTS_MAX: usize = 10;

/// Where to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) https: bool,
    pub(super) host: String,
    pub(super) port: u16,
    /// With the query; begins with `/`.
    pub(super) path: String,
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", authority(&self.host, self.port), self.path)
    }
}

/// Asks, follows redirects on the same host, and returns the last status.
pub(super) async fn get(mut url: Url, headers: &[(String, String)]) -> Result<u16, String> {
    for _ in 0..=REDIRECTS_MAX {
        let head = ask(&url, headers).await?;
        let Some(next) = redirect(&url, &head) else { return Ok(head.status) };
        url = next;
    }
    Err(format!("stopped after {REDIRECTS_MAX} redirects"))
}

async fn ask(url: &Url, headers: &[(String, String)]) -> Result<Head, String> {
    let request = request(url, headers)?;
    let stream = connect(&url.host, url.port)
        .await
        .map_err(|error| format!("{}: {}", dial(&url.host, url.port), what(&error)))?;
    let head = if url.https {
        match tls::connect(&url.host, stream).await {
            Ok(stream) => exchange(stream, &request).await,
            Err(error) => Err(error),
        }
    } else {
        exchange(stream, &request).await
    };
    head.map_err(|error| what(&error))
}

fn request(url: &Url, headers: &[(String, String)]) -> Result<String, String> {
    let of = |name: &str| headers.iter().find(|(own, _)| own.eq_ignore_ascii_case(name));
    let default_host = match (url.https, url.port) {
        (false, 80) | (true, 443) => {
            authority(&url.host, url.port).rsplit_once(':').map(|(host, _)| host.to_owned())
        }
        _ => None,
    };
    let host = of("Host").map(|(_, value)| value.clone()).or(default_host);
    let host = host.unwrap_or_else(|| authority(&url.host, url.port));
    let mut text = format!("GET {} HTTP/1.1\r\nHost: {host}\r\n", escape(&url.path));
    for (name, value) in [("User-Agent", "kube-probe/pinnace"), ("Accept", "*/*")] {
        if of(name).is_none() {
            let _ = write!(text, "{name}: {value}\r\n");
        }
    }
    for (name, value) in headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("Host")) {
        let _ = write!(text, "{name}: {value}\r\n");
    }
    let is_plain = |text: &String| !text.contains(['\r', '\n', '\0']);
    if !is_plain(&host) || !headers.iter().all(|(name, value)| is_plain(name) && is_plain(value)) {
        return Err("a header field holds a line break".to_owned());
    }
    text.push_str("Connection: close\r\n\r\n");
    Ok(text)
}

/// A path as it may stand in a request line.
fn escape(path: &str) -> String {
    path.bytes().fold(String::with_capacity(path.len()), |mut text, byte| {
        if byte.is_ascii_graphic() {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
        text
    })
}

async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &str,
) -> io::Result<Head> {
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut bytes = Vec::new();
    loop {
        match Head::parse(&bytes)? {
            // `100 Continue` and its like come before the answer.
            Some((head, n_bytes)) if head.status < 200 => {
                bytes.drain(..n_bytes);
                continue;
            }
            Some((head, _)) => return Ok(head),
            None => {}
        }
        let mut chunk = [0; 2048];
        match stream.read(&mut chunk).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => bytes.extend_from_slice(&chunk[..n]),
        }
    }
}

/// The head of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    location: Option<String>,
}

impl Head {
    /// Reads a head that is complete, and says how long it is.
    fn parse(bytes: &[u8]) -> io::Result<Option<(Self, usize)>> {
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, "malformed HTTP response");
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            let is_http = b"HTTP/1.".starts_with(&bytes[..bytes.len().min(7)]);
            return if bytes.len() < HEAD_BYTES_MAX && is_http {
                Ok(None)
            } else {
                Err(malformed())
            };
        };
        let text = String::from_utf8_lossy(&bytes[..end]);
        let mut lines = text.split("\r\n");
        let mut words = lines.next().unwrap_or_default().split(' ');
        let status = match (words.next(), words.next()) {
            (Some(version), Some(status)) if version.starts_with("HTTP/1.") => {
                status.parse().ok().filter(|_| status.len() == 3).ok_or_else(malformed)?
            }
            _ => return Err(malformed()),
        };
        let location = lines.find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("Location").then(|| value.trim().to_owned())
        });
        Ok(Some((Self { status, location }, end + 4)))
    }
}

/// Where an answer leads, if that is on the same host.
fn redirect(from: &Url, head: &Head) -> Option<Url> {
    if !matches!(head.status, 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = head.location.as_deref()?;
    let (https, rest) = match location.split_once("://") {
        Some(("http", rest)) => (false, rest),
        Some(("https", rest)) => (true, rest),
        Some(_) => return None,
        None => match location.strip_prefix("//") {
            Some(rest) => (from.https, rest),
            None => {
                let path = if location.starts_with('/') {
                    location.to_owned()
                } else {
                    let folder = from.path.split('?').next()?.rsplit_once('/')?.0;
                    format!("{folder}/{location}")
                };
                return Some(Url { path, ..from.clone() });
            }
        },
    };
    let at = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (place, path) = rest.split_at(at);
    let (host, port) = match place.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
        _ => (place, if https { 443 } else { 80 }),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    (host == from.host).then(|| Url { https, host: host.to_owned(), port, path })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn url(path: &str) -> Url {
        Url { https: false, host: "10.0.0.1".into(), port: 8080, path: path.into() }
    }

    #[test]
    fn a_request_says_what_the_manifest_says() {
        let headers = [("host".to_owned(), "app".to_owned()), ("X-A".to_owned(), "1".to_owned())];
        let text = request(&url("/a b?c=d"), &headers).unwrap();
        assert_eq!(
            text,
            "GET /a%20b?c=d HTTP/1.1\r\nHost: app\r\nUser-Agent: kube-probe/pinnace\r\n\
             Accept: */*\r\nX-A: 1\r\nConnection: close\r\n\r\n"
        );
        let bad = [("X-A".to_owned(), "1\r\nX-B: 2".to_owned())];
        request(&url("/"), &bad).unwrap_err();
        assert!(request(&url("/x\r\nX: y"), &[]).unwrap().starts_with("GET /x%0D%0AX:%20y HTTP"));
    }

    #[test]
    fn redirects_are_followed_on_the_same_host_only() {
        for (location, expected) in [
            ("/b?x", Some("http://10.0.0.1:8080/b?x")),
            ("c", Some("http://10.0.0.1:8080/a/c")),
            ("http://10.0.0.1/d", Some("http://10.0.0.1:80/d")),
            ("https://10.0.0.1", Some("https://10.0.0.1:443/")),
            ("//10.0.0.1:9?q", Some("http://10.0.0.1:9/?q")),
            ("http://elsewhere/d", None),
            ("ftp://10.0.0.1/", None),
            ("http://10.0.0.1:x/", None),
        ] {
            let head = Head { status: 302, location: Some(location.into()) };
            let next = redirect(&url("/a/b?q"), &head).map(|url| url.to_string());
            assert_eq!(next.as_deref(), expected, "{location}");
        }
        let kept = Head { status: 304, location: Some("/x".into()) };
        assert_eq!(redirect(&url("/"), &kept), None);
    }

    #[test]
    fn heads_are_read() {
        let parse = |text: &str| Head::parse(text.as_bytes());
        let (head, n) =
            parse("HTTP/1.1 204 No Content\r\nLOCATION: /x\r\n\r\nbody").unwrap().unwrap();
        assert_eq!((head.status, head.location.as_deref(), n), (204, Some("/x"), 41));
        for incomplete in ["", "HTT", "HTTP/1.1 200 OK\r\nA: b\r\n"] {
            assert_eq!(parse(incomplete).unwrap(), None, "{incomplete}");
        }
        for bad in ["SSH-2.0-x", "HTTP/2 200\r\n\r\n", "HTTP/1.1 20\r\n\r\n", "HTTP/1.1\r\n\r\n"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let long = [b"HTTP/1.1 200 OK\r\nA: ".to_vec(), vec![b'x'; 20_000]].concat();
        Head::parse(&long).unwrap_err();
    }

    proptest! {
        #[test]
        fn any_bytes_are_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300), location in ".{0,40}") {
            let _ = Head::parse(&[b"HTTP/1.1 ".to_vec(), bytes.clone(), b"\r\n\r\n".to_vec()].concat());
            let _ = Head::parse(&bytes);
            let _ = redirect(&url("/a"), &Head { status: 301, location: Some(location) });
        }
    }
}
