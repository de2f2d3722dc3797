//! The IP address of the client: the peer's, or, if the peer is a trusted proxy, the one in the forwarded header.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::extract::ConnectInfo;
use axum::http::header::FORWARDED;
use axum::http::{Extensions, HeaderMap, HeaderName};

use crate::config::{ForwardedHeader, HttpSettings};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The IP address of the client that sent a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClientIp(pub(super) IpAddr);

impl ClientIp {
    pub(super) fn find(extensions: &Extensions, headers: &HeaderMap, settings: &HttpSettings) -> Self {
        let peer = extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip().to_canonical());
        let peer = peer.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let is_trusted = |address: IpAddr| settings.trusted_proxies.iter().any(|network| network.contains(&address));
        if !is_trusted(peer) {
            return Self(peer);
        }
        // Each proxy appends the address of its peer, so the last address that is not a trusted proxy's is the client's. Addresses
        // before that one may be forged.
        let mut client = peer;
        for forwarded in forwarded_addresses(headers, settings.forwarded_header).into_iter().rev() {
            let Some(address) = forwarded else { break };
            client = address;
            if !is_trusted(address) {
                break;
            }
        }
        Self(client)
    }

    /// The address that [`ClientIp::find`] found for the request with these extensions.
    pub(super) fn of(extensions: &Extensions) -> IpAddr {
        extensions.get::<Self>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.0)
    }
}

/// The addresses in the forwarded header, in order. `None`: an element that is not an address.
fn forwarded_addresses(headers: &HeaderMap, header: ForwardedHeader) -> Vec<Option<IpAddr>> {
    // A value that is not text counts as an element without an address, which ends the chain.
    let (name, parse): (_, fn(&str) -> Option<IpAddr>) = match header {
        ForwardedHeader::XForwardedFor => (X_FORWARDED_FOR, parse_address),
        ForwardedHeader::Forwarded => (FORWARDED, parse_forwarded),
    };
    let values = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or_default());
    let elements = values.flat_map(|value| value.split(',')).map(str::trim);
    elements.map(parse).collect()
}

/// The `for` of an element of `Forwarded` (RFC 7239).
fn parse_forwarded(element: &str) -> Option<IpAddr> {
    let mut pairs = element.split(';').filter_map(|pair| pair.trim().split_once('='));
    let (_, node) = pairs.find(|(name, _)| name.eq_ignore_ascii_case("for"))?;
    parse_address(node.trim_matches('"'))
}

/// An address, with or without a port or brackets.
fn parse_address(node: &str) -> Option<IpAddr> {
    let bare = node.strip_prefix('[').and_then(|rest| rest.split(']').next());
    let parsed: Option<IpAddr> = match bare {
        Some(address) => address.parse().ok(),
        None => node.parse().ok().or_else(|| node.parse::<SocketAddr>().ok().map(|address| address.ip())),
    };
    parsed.map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    fn find(peer: &str, headers: &[(&str, &str)]) -> String {
        find_in(ForwardedHeader::XForwardedFor, peer, headers)
    }

    fn find_in(header: ForwardedHeader, peer: &str, headers: &[(&str, &str)]) -> String {
        let networks = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        let mut settings = Settings::load(None).unwrap().http;
        settings.trusted_proxies = networks;
        settings.forwarded_header = header;
        let mut extensions = Extensions::new();
        extensions.insert(ConnectInfo(SocketAddr::new(peer.parse().unwrap(), 1)));
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        ClientIp::find(&extensions, &map, &settings).0.to_string()
    }

    #[test]
    fn only_a_trusted_proxy_sets_the_client_ip() {
        let header = [("x-forwarded-for", "203.0.113.9")];
        assert_eq!(find("198.51.100.1", &header), "198.51.100.1");
        assert_eq!(find("10.0.0.1", &header), "203.0.113.9");
        assert_eq!(find("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(find("::ffff:10.0.0.1", &header), "203.0.113.9");
    }

    #[test]
    fn the_last_address_that_is_no_trusted_proxy_is_the_client() {
        for (headers, client) in [
            (vec![("x-forwarded-for", "1.1.1.1, 203.0.113.9, 10.0.0.7")], "203.0.113.9"),
            (vec![("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "203.0.113.9:4711")], "203.0.113.9"),
            (vec![("x-forwarded-for", "1.1.1.1, nonsense")], "10.0.0.1"),
            (vec![("x-forwarded-for", "10.0.0.5, 10.0.0.6")], "10.0.0.5"),
            (vec![("forwarded", "for=1.1.1.1"), ("x-forwarded-for", "203.0.113.9")], "203.0.113.9"),
            (vec![("forwarded", "for=1.1.1.1")], "10.0.0.1"),
        ] {
            assert_eq!(find("10.0.0.1", &headers), client, "{headers:?}");
        }
        for (headers, client) in [
            (vec![("forwarded", "for=1.1.1.1;proto=http, For=\"[2001:db8::7]:80\"")], "2001:db8::7"),
            (vec![("forwarded", "for=203.0.113.9;proto=https"), ("x-forwarded-for", "1.1.1.1")], "203.0.113.9"),
            (vec![("forwarded", "for=_hidden")], "10.0.0.1"),
            (vec![("x-forwarded-for", "1.1.1.1")], "10.0.0.1"),
        ] {
            assert_eq!(find_in(ForwardedHeader::Forwarded, "10.0.0.1", &headers), client, "{headers:?}");
        }
    }
}
