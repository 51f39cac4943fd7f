"""The profiles that every instance has unless its configuration changes them."""

from typing import Any

from estserver.model import Door, KeyType

_WEB, _EST, _ACME = Door.WEB, Door.EST, Door.ACME
_MAILBOX_MULTIPURPOSE = "2.23.140.1.5.1.2"
_PERSON_KEYS = (KeyType.RSA_3072, KeyType.EC_P256, KeyType.RSA_4096, KeyType.EC_P384)
_DEVICE_KEYS = (
    KeyType.EC_P256,
    KeyType.EC_P384,
    KeyType.EC_P521,
    KeyType.RSA_2048,
    KeyType.RSA_3072,
    KeyType.RSA_4096,
)
SHIPPED_PROFILES: dict[str, dict[str, Any]] = {
    "person": {
        "title": "Personal certificate",
        "title_ja": "個人証明書",
        "doors": (_WEB, _EST),
        "default_doors": (_WEB,),
        "subject": ("CN={name}",),
        "names": ("email",),
        "requires": ("name", "email"),
        "keys": _PERSON_KEYS,
        "validity": "395d",
        "key_usage": ("digitalSignature", "keyEncipherment"),
        "extended_key_usage": ("clientAuth", "emailProtection"),
        "policies": (_MAILBOX_MULTIPURPOSE,),
        "notices": {"issued": True},
    },
    "mail": {
        "title": "Mailbox certificate (S/MIME)",
        "title_ja": "メール証明書 (S/MIME)",
        "doors": (_WEB,),
        "default_doors": (_WEB,),
        "subject": ("CN={email}",),
        "names": ("email",),
        "requires": ("email",),
        "keys": _PERSON_KEYS,
        "validity": "395d",
        "key_usage": ("digitalSignature", "keyEncipherment"),
        "extended_key_usage": ("emailProtection", "clientAuth"),
        "policies": (_MAILBOX_MULTIPURPOSE,),
        "notices": {"issued": True},
    },
    "device": {
        "title": "Device certificate",
        "title_ja": "機器証明書",
        "doors": (_EST, _ACME),
        "default_doors": (_EST, _ACME),
        "subject": ("CN={device_id|first_name}",),
        "names": ("dns", "ip", "uri"),
        "requires": (),
        "keys": _DEVICE_KEYS,
        "validity": "365d",
        "key_usage": ("digitalSignature", "keyEncipherment"),
        "extended_key_usage": ("clientAuth",),
    },
    "server": {
        "title": "Server certificate",
        "title_ja": "サーバ証明書",
        "doors": (_EST, _ACME),
        "default_doors": (_EST, _ACME),
        "subject": ("CN={first_name}",),
        "names": ("dns", "ip"),
        "requires": ("names",),
        "wildcard": True,
        "keys": _DEVICE_KEYS,
        "validity": "90d",
        "key_usage": ("digitalSignature", "keyEncipherment"),
        "extended_key_usage": ("serverAuth", "clientAuth"),
    },
    "officer": {
        "title": "Registration officer certificate",
        "title_ja": "登録担当者証明書",
        "doors": (_WEB,),
        "default_doors": (_WEB,),
        "subject": ("CN={name}",),
        "names": ("email",),
        "requires": ("name", "email"),
        "keys": _PERSON_KEYS,
        "validity": "395d",
        "key_usage": ("digitalSignature", "keyEncipherment"),
        "extended_key_usage": ("clientAuth",),
        "notices": {"issued": True},
    },
}
