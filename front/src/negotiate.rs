//! Which form of an answer a client wants: the `Accept` header.
//!
//! Everything here is spoken as JSON. What differs is the shape: the object
//! itself, a table of columns, metadata only, or aggregated discovery. A client
//! lists what it understands, best first, with parameters `as`, `g` and `v`.

use http::HeaderMap;
use http::header::{ACCEPT, ACCEPT_ENCODING};

use crate::status::Status;

/// The shape of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As it is stored.
    Object,
    /// `meta.k8s.io/v1` Table.
    Table,
    /// `meta.k8s.io/v1` `PartialObjectMetadata`, or a list of it.
    Metadata,
    /// `apidiscovery.k8s.io/v2` `APIGroupDiscoveryList`.
    Discovery,
}

/// Longest `Accept` header that is read, in bytes.
const ACCEPT_BYTES_MAX: usize = 8 * 1024;

/// The first form in `Accept` that is among `offered`; [`Form::Object`] always is.
///
/// # Errors
/// `NotAcceptable`: the client takes none of them.
pub fn form(headers: &HeaderMap, offered: &[Form]) -> Result<Form, Status> {
    let mut ranges = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let Some(first) = ranges.next() else { return Ok(Form::Object) };
    let mut text = first.to_owned();
    for more in ranges {
        text.push(',');
        text.push_str(more);
    }
    if text.len() > ACCEPT_BYTES_MAX {
        return Err(Status::bad_request("the Accept header is too long"));
    }
    for range in text.split(',') {
        if let Some(form) = read_range(range, offered) {
            return Ok(form);
        }
    }
    Err(Status::not_acceptable("application/json"))
}

fn read_range(range: &str, offered: &[Form]) -> Option<Form> {
    let mut parts = range.split(';').map(str::trim);
    let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
    if !matches!(kind.as_str(), "application/json" | "application/*" | "*/*" | "") {
        return None;
    }
    let (mut shape, mut group, mut version) = ("", "", "");
    for part in parts {
        match part.split_once('=') {
            Some(("as", value)) => shape = value,
            Some(("g", value)) => group = value,
            Some(("v", value)) => version = value,
            Some(("q", value)) if value.trim().parse() == Ok(0.0_f32) => return None,
            _ => {}
        }
    }
    let form = match (shape, group, version) {
        ("", ..) => Form::Object,
        ("Table", "meta.k8s.io", "v1") => Form::Table,
        ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1") => {
            Form::Metadata
        }
        ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2") => Form::Discovery,
        _ => return None,
    };
    (form == Form::Object || offered.contains(&form)).then_some(form)
}

/// Whether the client takes gzip.
#[must_use]
pub fn accepts_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let gzip = parts.next().is_some_and(|name| matches!(name, "gzip" | "*"));
        gzip && !parts.any(|part| matches!(part, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn check(accept: &'static str, offered: &[Form]) -> Result<Form, u16> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        form(&headers, offered).map_err(|status| status.code())
    }

    #[test]
    fn the_first_form_that_is_spoken_wins() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,\
                     application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(check(table, &[Form::Table]), Ok(Form::Table));
        assert_eq!(check(table, &[]), Ok(Form::Object));
        let discovery = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
                         application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,\
                         application/json";
        assert_eq!(check(discovery, &[Form::Discovery]), Ok(Form::Discovery));
        let protobuf = "application/vnd.kubernetes.protobuf,application/json";
        assert_eq!(check(protobuf, &[Form::Table]), Ok(Form::Object));
        assert_eq!(check("application/vnd.kubernetes.protobuf", &[]), Err(406));
        assert_eq!(check("text/html, */*;q=0.1", &[]), Ok(Form::Object));
        assert_eq!(form(&HeaderMap::new(), &[]), Ok(Form::Object));
        let metadata = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
        assert_eq!(check(metadata, &[Form::Metadata]), Ok(Form::Metadata));
    }

    #[test]
    fn gzip_is_taken_where_it_is_not_refused() {
        for (value, expected) in
            [("gzip", true), ("br, gzip;q=0.5", true), ("gzip;q=0", false), ("identity", false)]
        {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(value));
            assert_eq!(accepts_gzip(&headers), expected, "{value}");
        }
    }
}
