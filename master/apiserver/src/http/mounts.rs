//! Requests for what is mounted beside the API.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::body::{Frame, Incoming};

use super::{State, authenticate};
use crate::authorize::Decision;
use crate::identity::Identity;
use crate::mount::{Mount, MountBody};
use front::answer::{Answer, BrokenOff};

/// Answers a request for `mount`.
pub(super) async fn serve(
    state: &State,
    mount: &dyn Mount,
    certificate: Option<&Identity>,
    request: Request<Incoming>,
) -> Answer {
    let (head, body) = request.into_parts();
    let tokens = state.tokens.as_deref();
    let who = match password(&head.headers) {
        Some((user, password)) if certificate.is_none() => {
            let token = || tokens?.authenticate(&password);
            mount.password(&user, &password).or_else(token)
        }
        _ => authenticate::request_identity(certificate, &head.headers, tokens).ok(),
    };
    // Wrong credentials get nothing more than none.
    let who = who.unwrap_or_else(Identity::anonymous);
    let verb = head.method.as_str().to_ascii_lowercase();
    let decision = state.api.authorizer().authorize_path(&who, &verb, head.uri.path());
    if decision != Decision::Allow {
        let mut refused = mount.refuse(&who);
        if who.is_anonymous() {
            let challenge = HeaderValue::from_static("Basic realm=\"pinnace\"");
            refused.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        return answer(refused);
    }
    let pieces: MountBody = Box::pin(BodyStream::new(body).filter_map(|frame| async {
        match frame {
            Ok(frame) => frame.into_data().ok().map(Ok),
            Err(error) => Some(Err(std::io::Error::other(error))),
        }
    }));
    answer(mount.serve(&who, Request::from_parts(head, pieces)).await)
}

fn answer(response: Response<MountBody>) -> Answer {
    response.map(|pieces| {
        let frames = pieces.map(|piece| match piece {
            Ok(bytes) => Ok(Frame::data(bytes)),
            Err(error) => Err(BrokenOff(error.to_string())),
        });
        StreamBody::new(frames).boxed_unsync()
    })
}

/// User and password of `Authorization: Basic …`.
fn password(headers: &HeaderMap) -> Option<(String, String)> {
    let (scheme, encoded) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_read_from_their_header() {
        let read = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, HeaderValue::from_static(text));
            password(&headers)
        };
        assert_eq!(read("Basic dTpwOnE="), Some(("u".into(), "p:q".into())));
        for none in ["Bearer dTpw", "Basic", "Basic !", "Basic dQ==", "Basic /w=="] {
            assert_eq!(read(none), None, "{none}");
        }
    }
}
