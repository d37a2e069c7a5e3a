use super::*;
use parking_lot::Mutex;
use proptest::prelude::*;
use std::collections::VecDeque;

fn guard(deny: &[&str], public_only: bool) -> Guard {
    Guard::new(deny.iter().map(|net| net.parse().unwrap()).collect::<Vec<_>>(), public_only)
}

/// The default of `callbacks.deny_networks`.
fn default_guard() -> Guard {
    guard(&["169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128"], false)
}

fn check_url(guard: &Guard, url: &str) -> Result<(), Refused> {
    guard.check_url(&url.parse().unwrap())
}

#[test]
fn metadata_addresses_are_refused_in_every_spelling() {
    for host in [
        "169.254.169.254",
        "169.254.169.254.",
        "2852039166",
        "0xa9fea9fe",
        "0xa9.0xfe.0xa9.0xfe",
        "0251.0376.0251.0376",
        "169.254.43518",
        "[::ffff:169.254.169.254]",
        "[::169.254.169.254]",
        "[64:ff9b::169.254.169.254]",
        "[2002:a9fe:a9fe::1]",
        "[fe80::1]",
        "[febf::1]",
        "[fd00:ec2::254]",
        "[fd00:0ec2:0:0:0:0:0:0254]",
    ] {
        let refused = check_url(&default_guard(), &format!("http://u:p@{host}:80/latest/meta-data"));
        assert!(matches!(refused, Err(Refused::Denied(_))), "{host}: {refused:?}");
    }
}

#[test]
fn private_addresses_are_the_operators_to_use_unless_public_only() {
    let seven = ["127.0.0.1", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "127.0.0.1.", "[::ffff:127.0.0.1]"];
    for host in seven.into_iter().chain(["[::1]", "10.1.2.3", "[fd00:ec2::253]", "93.184.216.34"]) {
        assert_eq!(check_url(&default_guard(), &format!("http://{host}/")), Ok(()), "{host}");
    }
    for host in seven {
        let refused = check_url(&guard(&[], true), &format!("http://{host}/"));
        assert!(matches!(refused, Err(Refused::NotGlobal(_))), "{host}: {refused:?}");
        let refused = check_url(&guard(&["127.0.0.0/8"], false), &format!("http://{host}/"));
        assert!(matches!(refused, Err(Refused::Denied(_))), "{host}: {refused:?}");
    }
}

#[test]
fn only_web_urls_with_a_host_will_do() {
    for url in ["ftp://example.com/", "file:///etc/passwd", "unix:/run/x", "data:,x"] {
        assert_eq!(check_url(&default_guard(), url), Err(Refused::NoWebUrl), "{url}");
    }
    assert_eq!(check_url(&guard(&[], true), "https://example.com/hook"), Ok(()), "a name is checked when resolved");
}

#[test]
fn the_first_and_last_address_of_each_special_network_are_not_global_and_their_neighbours_are() {
    let table = [
        ("0.0.0.0", "0.255.255.255"),
        ("10.0.0.0", "10.255.255.255"),
        ("100.64.0.0", "100.127.255.255"),
        ("127.0.0.0", "127.255.255.255"),
        ("169.254.0.0", "169.254.255.255"),
        ("172.16.0.0", "172.31.255.255"),
        ("192.0.0.0", "192.0.0.255"),
        ("192.0.2.0", "192.0.2.255"),
        ("192.88.99.0", "192.88.99.255"),
        ("192.168.0.0", "192.168.255.255"),
        ("198.18.0.0", "198.19.255.255"),
        ("198.51.100.0", "198.51.100.255"),
        ("203.0.113.0", "203.0.113.255"),
        ("224.0.0.0", "239.255.255.255"),
        ("240.0.0.0", "255.255.255.255"),
        ("::", "ff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff"),
        ("100::", "100::ffff:ffff:ffff:ffff"),
        ("2001::", "2001:0:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("2001:1ff::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("5f00::", "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ];
    for ip in table.iter().flat_map(|(first, last)| [first, last]) {
        assert!(!is_global(ip.parse().unwrap()), "{ip}");
    }
    let global = [
        "1.0.0.0",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "192.0.1.0",
        "192.0.3.0",
        "192.88.98.255",
        "192.88.100.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "198.51.99.255",
        "203.0.112.1",
        "203.0.114.0",
        "223.255.255.255",
        "::ffff:8.8.8.8",
        "64:ff9b::8.8.8.8",
        "2001:1::1",
        "2001:3::1",
        "2001:4:112::1",
        "2001:20::1",
        "2001:3f::1",
        "2001:200::1",
        "2606:4700::1111",
        "2a00::1",
        "3ffe::1",
        "3fff:1000::1",
    ];
    for ip in global {
        assert!(is_global(ip.parse().unwrap()), "{ip}");
    }
    for ip in ["::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::7f00:1", "::8.8.8.8"] {
        assert!(!is_global(ip.parse().unwrap()), "{ip}");
    }
}

async fn resolve(resolver: &GuardedResolver, name: &str) -> Result<Vec<String>, String> {
    let found = resolver.resolve(name.parse().unwrap()).await.map_err(|e| e.to_string())?;
    Ok(found.map(|addr| addr.ip().to_string()).collect())
}

#[tokio::test]
async fn of_a_names_addresses_the_refused_ones_are_left_out() {
    let resolver = GuardedResolver::new(default_guard(), |_| async {
        Ok(["169.254.169.254:0", "10.0.0.1:0", "[fe80::1]:0"].map(|a| a.parse().unwrap()).to_vec())
    });
    assert_eq!(resolve(&resolver, "mixed.test").await, Ok(vec!["10.0.0.1".to_owned()]));
}

#[tokio::test]
async fn a_name_that_rebinds_is_checked_at_each_lookup() {
    let answers = Mutex::new(VecDeque::from(["10.0.0.1:0", "169.254.169.254:0"]));
    let resolver = GuardedResolver::new(default_guard(), move |_| {
        let addr = answers.lock().pop_front().unwrap().parse().unwrap();
        async move { Ok(vec![addr]) }
    });
    assert!(resolve(&resolver, "rebinding.test").await.is_ok());
    assert!(resolve(&resolver, "rebinding.test").await.unwrap_err().contains("169.254.169.254 is refused"));
}

#[tokio::test]
async fn a_lookup_that_hangs_is_given_up() {
    let resolver = GuardedResolver::new(default_guard(), |_| std::future::pending());
    assert!(resolve(&resolver, "hangs.test").await.is_err());
}

proptest! {
    #[test]
    fn an_ipv4_address_is_judged_the_same_mapped_and_through_nat64(bits: u32) {
        let v4 = Ipv4Addr::from(bits);
        let nat64 = Ipv6Addr::from((0x64_ff9b_u128 << 96) | u128::from(bits));
        for guard in [default_guard(), guard(&[], true)] {
            let plain = guard.check(v4.into()).is_ok();
            prop_assert_eq!(guard.check(v4.to_ipv6_mapped().into()).is_ok(), plain);
            prop_assert_eq!(guard.check(nat64.into()).is_ok(), plain);
        }
    }
}
