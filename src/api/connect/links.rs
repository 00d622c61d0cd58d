//! Links of proxied pages and redirects: those that stay on the proxied server lead back through the proxy. Pure.
//! Source: apimachinery `pkg/util/proxy/transport.go`.

use std::{
    cell::RefCell,
    convert::Infallible,
    io::{Cursor, Read},
};

use flate2::{
    Compression,
    read::{DeflateDecoder, DeflateEncoder, GzDecoder, GzEncoder},
};
use html5gum::{
    Span, Tokenizer,
    emitters::callback::{CallbackEmitter, CallbackEvent},
};
use http::Uri;

/// Which attributes hold an address, and of which tags.
const LINKS: [(&str, &[&str]); 15] = [
    ("action", &["form"]),
    ("background", &["body"]),
    ("cite", &["blockquote", "del", "ins", "q"]),
    ("classid", &["object"]),
    ("codebase", &["applet", "object"]),
    ("data", &["object"]),
    ("formaction", &["button", "input"]),
    ("href", &["a", "area", "base", "link"]),
    ("icon", &["command"]),
    ("longdesc", &["frame", "iframe", "img"]),
    ("manifest", &["html"]),
    ("poster", &["video"]),
    ("profile", &["head"]),
    ("src", &["audio", "embed", "frame", "iframe", "img", "input", "script", "source", "video"]),
    ("usemap", &["img", "input", "object"]),
];

/// How addresses are rewritten.
pub struct Links<'a> {
    /// The path of the proxy, up to where the proxied server's own begin.
    pub prefix: &'a str,
    /// `host:port` of the proxied server.
    pub target: &'a str,
    /// The host that the client asked.
    pub asked: &'a str,
}

impl Links<'_> {
    /// The address as the client must ask for it; `None` for one that stays as it is.
    pub fn rewritten(&self, address: &str) -> Option<String> {
        let uri: Uri = address.split('#').next().filter(|it| !it.starts_with("//"))?.parse().ok()?;
        let host = uri.authority().map(|it| it.as_str());
        if host.is_some_and(|it| it != self.target && it != self.asked) || (host.is_none() && !address.starts_with('/')) {
            return None;
        }
        let at = match host {
            Some(host) => address.find(host)? + host.len(),
            None => 0,
        };
        // The host that the client asked may stay; the proxied server's own is nothing to it.
        let (start, rest) = if host == Some(self.asked) { address.split_at(at) } else { ("", &address[at..]) };
        if rest.starts_with(self.prefix) {
            return Some(format!("{start}{rest}"));
        }
        let slash = if rest.starts_with('/') { "" } else { "/" };
        Some(format!("{start}{}{slash}{rest}", self.prefix))
    }

    /// The page with its links rewritten, byte for byte the same otherwise.
    pub fn page(&self, page: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(page.len() + 256);
        let mut at = 0;
        for (start, end, text) in self.changes(page) {
            out.extend_from_slice(&page[at..start]);
            out.extend_from_slice(text.as_bytes());
            at = end;
        }
        out.extend_from_slice(&page[at..]);
        out
    }

    /// The same of a page in this `Content-Encoding`; `None` for one that is not understood.
    pub fn encoded_page(&self, page: &[u8], encoding: &str) -> Option<Vec<u8>> {
        let repacked = |plain: Option<Vec<u8>>| plain.map(|it| Cursor::new(self.page(&it)));
        match encoding {
            "" => Some(self.page(page)),
            "gzip" => whole(GzEncoder::new(repacked(whole(GzDecoder::new(page)))?, Compression::fast())),
            "deflate" => whole(DeflateEncoder::new(repacked(whole(DeflateDecoder::new(page)))?, Compression::fast())),
            _ => None,
        }
    }

    /// Places of attribute values and what stands there instead, in order.
    fn changes(&self, page: &[u8]) -> Vec<(usize, usize, String)> {
        let changes = RefCell::new(Vec::new());
        let (mut tag, mut is_link) = (Vec::new(), false);
        let mut emitter = CallbackEmitter::new(|event: CallbackEvent<'_>, span: Span<usize>| -> Option<Infallible> {
            match event {
                CallbackEvent::OpenStartTag { name } => tag = name.to_vec(),
                CallbackEvent::AttributeName { name } => {
                    is_link = LINKS.iter().any(|(link, tags)| link.as_bytes() == name && tags.iter().any(|it| it.as_bytes() == tag));
                }
                CallbackEvent::AttributeValue { value } if is_link => {
                    let text = std::str::from_utf8(value).ok().and_then(|it| self.rewritten(it));
                    changes.borrow_mut().extend(text.map(|it| (span.start, span.end, escaped(&it))));
                }
                _ => (),
            }
            None
        });
        // What stands in scripts and styles is no tag.
        emitter.naively_switch_states(true);
        let _ = Tokenizer::new_with_emitter(page, emitter).count();
        changes.into_inner()
    }
}

fn whole(mut reader: impl Read) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    reader.read_to_end(&mut all).ok().map(|_| all)
}

fn escaped(value: &str) -> String {
    value.replace('&', "&amp;").replace('"', "&#34;").replace('\'', "&#39;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINKS: Links<'static> = Links { prefix: "/api/v1/p/proxy", target: "10.1.2.3:80", asked: "me:6443" };

    #[test]
    fn addresses_of_the_proxied_server_lead_through_the_proxy() {
        let cases = [
            ("/a", Some("/api/v1/p/proxy/a")),
            ("/a/?b=c&d#e", Some("/api/v1/p/proxy/a/?b=c&d#e")),
            ("/", Some("/api/v1/p/proxy/")),
            ("http://10.1.2.3:80/a", Some("/api/v1/p/proxy/a")),
            ("http://10.1.2.3:80", Some("/api/v1/p/proxy/")),
            ("https://me:6443/a", Some("https://me:6443/api/v1/p/proxy/a")),
            ("/api/v1/p/proxy/a", Some("/api/v1/p/proxy/a")),
            ("a/b", None),
            ("#x", None),
            ("", None),
            ("//other/a", None),
            ("http://other/a", None),
            ("mailto:a@b", None),
        ];
        for (address, expected) in cases {
            assert_eq!(LINKS.rewritten(address).as_deref(), expected, "{address}");
        }
    }

    #[test]
    fn pages_stay_as_they_are_but_for_their_links() {
        let cases = [
            (r#"<a href="/x">t</a>"#, r#"<a href="/api/v1/p/proxy/x">t</a>"#),
            ("<A HREF=/x>t</A>", "<A HREF=/api/v1/p/proxy/x>t</A>"),
            ("<p title='/x'>/x</p><!-- <a href='/x'> -->", "<p title='/x'>/x</p><!-- <a href='/x'> -->"),
            (r#"<img id="i" src='/i.png' alt="/x"/>"#, r#"<img id="i" src='/api/v1/p/proxy/i.png' alt="/x"/>"#),
            (r#"<a href="/x?a=1&amp;b=2">"#, r#"<a href="/api/v1/p/proxy/x?a=1&amp;b=2">"#),
            (r#"<script>if (a < b) "<a href='/x'>"</script>"#, r#"<script>if (a < b) "<a href='/x'>"</script>"#),
            ("<a href", "<a href"),
            ("\u{fffd}<a href='/ü'>", "\u{fffd}<a href='/api/v1/p/proxy/ü'>"),
        ];
        for (page, expected) in cases {
            assert_eq!(String::from_utf8_lossy(&LINKS.page(page.as_bytes())), expected, "{page}");
        }
    }

    #[test]
    fn packed_pages_are_packed_again() {
        let packed = whole(GzEncoder::new(&b"<a href='/x'>"[..], Compression::fast())).expect("packs");
        let page = whole(GzDecoder::new(&*LINKS.encoded_page(&packed, "gzip").expect("a page"))).expect("unpacks");
        assert_eq!(String::from_utf8_lossy(&page), "<a href='/api/v1/p/proxy/x'>");
        assert_eq!(LINKS.encoded_page(b"x", "br"), None);
    }
}
