"""Keys for secrets: what they decrypt, what they do not, and where they come from."""

import base64
import re
from pathlib import Path
from threading import Thread

import pytest

from service.errors import SecretKeyMissing, SecretUnreadable, ServiceError, SettingsInvalid
from service.secret_keys import Sealed, SecretKey, SecretKeys, SecretRef, parse_keys
from service.settings import Settings

OLD, NEW = (base64.b64encode(bytes([byte]) * 32).decode() for byte in (1, 2))
REF = SecretRef("acme", "shop", "API_TOKEN")
VALUE = 'grüße\nand "quotes" \'n $HOME'


def keys(text: str) -> SecretKeys:
    return SecretKeys(parse_keys(text))


@pytest.mark.parametrize("value", [VALUE, "", "x" * 32 * 1024, "🌊"])
def test_a_value_comes_back_as_it_was(value: str) -> None:
    sealed = keys(OLD).seal(REF, value)
    assert keys(OLD).open(REF, sealed) == value


def test_the_same_value_never_looks_the_same_and_never_like_itself() -> None:
    one, other = (keys(OLD).seal(REF, VALUE) for _ in range(2))
    assert one.ciphertext != other.ciphertext
    assert VALUE.encode() not in one.ciphertext


@pytest.mark.parametrize(
    "elsewhere",
    [
        REF._replace(tenant="globex"),
        REF._replace(project="blog"),
        REF._replace(name="OTHER"),
        SecretRef("acme", "shopAPI", "_TOKEN"),
    ],
)
def test_a_row_that_is_moved_to_another_place_cannot_be_decrypted(elsewhere: SecretRef) -> None:
    sealed = keys(OLD).seal(REF, VALUE)
    with pytest.raises(SecretUnreadable, match="damaged, or another's: set it again"):
        keys(OLD).open(elsewhere, sealed)


@pytest.mark.parametrize("place", [0, 12, -1])
def test_a_ciphertext_with_one_bit_changed_cannot_be_decrypted(place: int) -> None:
    key_id, ciphertext = keys(OLD).seal(REF, VALUE)
    changed = bytearray(ciphertext)
    changed[place] ^= 1
    with pytest.raises(SecretUnreadable):
        keys(OLD).open(REF, Sealed(key_id, bytes(changed)))
    with pytest.raises(SecretUnreadable):
        keys(OLD).open(REF, Sealed(key_id, ciphertext[:5]))


def test_the_first_key_encrypts_and_all_decrypt() -> None:
    both = keys(f" {NEW} , {OLD},")
    assert both.open(REF, keys(OLD).seal(REF, VALUE)) == VALUE
    assert keys(NEW).open(REF, both.seal(REF, VALUE)) == VALUE


def test_without_its_key_a_value_says_which_key_it_wants_and_what_to_do() -> None:
    sealed = keys(OLD).seal(REF, VALUE)
    with pytest.raises(SecretUnreadable) as raised:
        keys(NEW).open(REF, sealed)
    said = str(raised.value)
    assert f"encrypted with key {sealed.key_id}, and there is {parse_keys(NEW)[0].id} here" in said
    assert "add that key to HEADRACE_SECRETS_KEY, or set the secret again" in said
    with pytest.raises(SecretUnreadable, match="there is no key here"):
        SecretKeys().open(REF, sealed)
    with pytest.raises(SecretKeyMissing, match=r"HEADRACE_SECRETS_KEY is not set.*openssl rand"):
        SecretKeys().seal(REF, VALUE)


def test_a_key_tells_nothing_of_itself() -> None:
    (key,) = parse_keys(OLD)
    assert re.fullmatch(r"[0-9a-f]{8}", key.id)
    assert OLD not in repr(key)
    assert repr(bytes([1] * 32)) not in repr(key)


def test_both_alphabets_of_base64_are_taken_with_and_without_padding() -> None:
    material = bytes(range(224, 256))
    wide, narrow = base64.b64encode(material).decode(), base64.urlsafe_b64encode(material).decode()
    assert wide != narrow
    for text in (wide, narrow, wide.rstrip("="), narrow.rstrip("=")):
        assert SecretKey.parse(text).material == material


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hunter2hunter2hunter2hunter2", "key 1 of 1: it has 21 bytes, not 32"),
        (f"{OLD},!!hunter2!!", "key 2 of 2: it is not base64"),
        ("hunter2ü", "it is not base64"),
        (" , ", "it has 0 keys"),
        (",".join([OLD] * 17), "it has 17 keys"),
    ],
)
def test_a_malformed_key_is_refused_at_the_start_by_the_variables_name_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    monkeypatch.setenv("HEADRACE_SECRETS_KEY", text)
    with pytest.raises(SettingsInvalid, match=f"HEADRACE_SECRETS_KEY: .*{says}") as raised:
        Settings.read()
    chain: BaseException | None = raised.value
    while chain is not None:
        assert "hunter2" not in str(chain)
        chain = chain.__cause__ or chain.__context__


def test_the_setting_is_not_shown_when_settings_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_SECRETS_KEY", OLD)
    assert OLD not in repr(Settings.read())


def test_the_key_of_a_home_is_made_when_it_is_first_needed_for_its_owner_alone(
    tmp_path: Path,
) -> None:
    path = tmp_path / "secrets.key"
    homes = SecretKeys(file=path)
    assert homes.known == ()
    assert not path.exists()
    sealed = homes.seal(REF, VALUE)
    assert path.stat().st_mode & 0o777 == 0o600
    assert SecretKeys(file=path).open(REF, sealed) == VALUE
    assert [file.name for file in tmp_path.iterdir()] == ["secrets.key"]


def test_many_that_need_the_first_key_at_once_get_the_same_one(tmp_path: Path) -> None:
    path, made = tmp_path / "secrets.key", list[Sealed]()
    threads = [
        Thread(target=lambda: made.append(SecretKeys(file=path).seal(REF, VALUE))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({sealed.key_id for sealed in made}) == 1
    assert len(made) == 8


def test_a_key_that_is_named_goes_before_that_of_the_home_which_decrypts_on(tmp_path: Path) -> None:
    path = tmp_path / "secrets.key"
    before = SecretKeys(file=path).seal(REF, VALUE)
    both = SecretKeys(parse_keys(NEW), file=path)
    assert both.open(REF, before) == VALUE
    assert both.seal(REF, VALUE).key_id == parse_keys(NEW)[0].id


def test_where_a_key_is_named_none_is_made(tmp_path: Path) -> None:
    path = tmp_path / "secrets.key"
    SecretKeys(parse_keys(NEW), file=path).seal(REF, VALUE)
    assert not path.exists()


def test_a_damaged_key_of_a_home_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "secrets.key"
    path.write_text("half a k")
    with pytest.raises(ServiceError, match=r"is no key: .*put it back from a backup"):
        SecretKeys(file=path).seal(REF, VALUE)
    assert path.read_text() == "half a k"
