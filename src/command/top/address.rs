//! Where a service is asked for its metrics.

use std::fmt;
use std::str::FromStr;

use hyper::Uri;

/// The port that the main job serves metrics on if none is given.
const PORT: u16 = 9464;

/// The page where metrics are, if none is named.
const PAGE: &str = "/metrics";

/// An address such as `127.0.0.1:9464` or `http://host:9464/metrics`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    host: String,
    port: u16,
    page: String,
}

impl Address {
    /// Host and port, as one connects to them.
    pub(super) fn peer(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    /// Path and query.
    pub(super) fn page(&self) -> &str {
        &self.page
    }

    /// Host and port, as a request names them.
    pub(super) fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "'{word}' is not an address: use HOST:PORT, such as 127.0.0.1:{PORT}, or http://HOST:PORT{PAGE}"
            )
        };
        if word.starts_with("https://") {
            return Err(format!("'{word}': only http:// is spoken here"));
        }
        let rest = word.strip_prefix("http://").unwrap_or(word);
        let uri: Uri = format!("http://{rest}").parse().map_err(|_| wrong())?;
        let authority = uri.authority().ok_or_else(wrong)?;
        let host = authority.host();
        // A name of a user before the host is no host either.
        let port = match authority.as_str().strip_prefix(host).map(|port| port.strip_prefix(':')) {
            Some(None) if authority.as_str() == host => PORT,
            Some(Some(port)) => port.parse().map_err(|_| wrong())?,
            _ => return Err(wrong()),
        };
        let host = host.trim_matches(['[', ']']);
        if host.is_empty() {
            return Err(wrong());
        }
        let page = uri.path_and_query().map_or(PAGE, |page| page.as_str());
        let page = if page == "/" { PAGE } else { page };
        Ok(Address { host: host.to_owned(), port, page: page.to_owned() })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let page = if self.page == PAGE { "" } else { self.page.as_str() };
        f.pad(&format!("{}{page}", self.authority()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_urls_are_read() {
        for (word, host, port, page) in [
            ("127.0.0.1:9464", "127.0.0.1", 9464, "/metrics"),
            ("guest7", "guest7", 9464, "/metrics"),
            ("localhost:80", "localhost", 80, "/metrics"),
            ("[::1]:9465", "::1", 9465, "/metrics"),
            ("http://10.0.0.1:9464", "10.0.0.1", 9464, "/metrics"),
            ("http://10.0.0.1:9464/", "10.0.0.1", 9464, "/metrics"),
            ("http://proxy:8080/vm/1?all=1", "proxy", 8080, "/vm/1?all=1"),
        ] {
            let address: Address = word.parse().unwrap();
            assert_eq!(address.peer(), (host, port), "{word}");
            assert_eq!(address.page(), page, "{word}");
        }
        let shown = |word: &str| word.parse::<Address>().unwrap().to_string();
        assert_eq!(shown("http://[::1]/"), "[::1]:9464");
        assert_eq!(shown("http://proxy:8080/vm/1"), "proxy:8080/vm/1");
    }

    #[test]
    fn what_is_no_address_is_refused_with_an_example() {
        for word in
            ["", ":", ":9464", "a b", "host:", "host:http", "host:99999", "http://", "u@host:1"]
        {
            let error = word.parse::<Address>().unwrap_err();
            assert!(error.contains("HOST:PORT"), "{word}: {error}");
        }
        assert!("https://host:1".parse::<Address>().unwrap_err().contains("http://"));
    }
}
