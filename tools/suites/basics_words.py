"""The stratum domain_vocabulary: terms of eight fields with what they mean, in our own words."""

from __future__ import annotations

import random

from suites.rows import Row, row

LETTERS = "ABCD"
FIELDS = {
    "medicine": {
        "tachycardia": "a heart that beats too fast",
        "bradycardia": "a heart that beats too slowly",
        "hypoxia": "too little oxygen in the tissues",
        "edema": "swelling because fluid gathers in the tissue",
        "jaundice": "skin and eyes that turn yellow",
        "anemia": "too few red cells or too little haemoglobin in the blood",
        "dyspnea": "the feeling of not getting enough air",
        "hematoma": "blood that has gathered outside the vessels",
        "biopsy": "taking a piece of tissue to examine it",
        "triage": "sorting patients by how urgently they need care",
    },
    "law": {
        "plaintiff": "the one who brings a suit before a court",
        "defendant": "the one against whom a suit is brought",
        "tort": "a wrong, other than breach of contract, for which one can sue",
        "lien": "a right to keep or sell another's thing until a debt is paid",
        "affidavit": "a written statement made under oath",
        "subpoena": "an order to appear or to hand over evidence",
        "statute": "a law that a parliament has passed",
        "injunction": "a court's order to do or to stop doing something",
        "acquittal": "the finding that the accused is not guilty",
        "perjury": "lying under oath",
    },
    "finance": {
        "liquidity": "how quickly something can be turned into cash",
        "equity": "what is left of a firm's assets after its debts",
        "dividend": "the part of the profit that is paid to shareholders",
        "amortisation": "paying a loan back, or writing a value down, in parts",
        "hedge": "a position taken to offset the risk of another",
        "collateral": "what is pledged in case a loan is not paid back",
        "arbitrage": "gaining from two prices for the same thing",
        "default": "failing to pay what is owed when it is due",
        "yield": "the income from an investment as a share of its price",
        "insolvency": "not being able to pay one's debts",
    },
    "networking": {
        "latency": "the time that data takes to get there",
        "bandwidth": "how much data a line can carry in a second",
        "router": "a device that passes packets from one network to another",
        "firewall": "what decides which traffic may pass",
        "subnet": "a part of a network with an address range of its own",
        "jitter": "how much the delay of packets varies",
        "handshake": "the first messages by which two sides agree to talk",
        "proxy": "a server that makes requests on behalf of others",
        "multicast": "sending once to a group of receivers",
        "checksum": "a small value by which damaged data is noticed",
    },
    "machine learning": {
        "overfitting": "learning the training data by heart and doing worse on new data",
        "epoch": "one pass over all the training data",
        "gradient": "the direction in which a loss rises fastest",
        "embedding": "a vector that stands for a word or a thing",
        "recall": "the share of the true cases that were found",
        "precision": "the share of the reported cases that are true",
        "regularisation": "holding a model back so that it does better on new data",
        "quantization": "storing weights with fewer bits",
        "tokenizer": "what splits text into the pieces that a model reads",
        "hyperparameter": "a setting chosen before training starts",
    },
    "cooking": {
        "blanch": "to boil briefly and then cool at once",
        "braise": "to brown and then cook slowly in a little liquid",
        "julienne": "to cut into thin sticks",
        "deglaze": "to loosen what sticks to the pan with a liquid",
        "knead": "to work dough with the hands",
        "simmer": "to cook just below the boiling point",
        "marinate": "to leave food in a seasoned liquid before cooking",
        "proof": "to let dough rise before baking",
        "zest": "the outer skin of a lemon, grated",
        "baste": "to pour juices over meat while it roasts",
    },
    "sailing": {
        "port": "the left side when looking forward",
        "starboard": "the right side when looking forward",
        "bow": "the front end of a boat",
        "stern": "the back end of a boat",
        "keel": "the fin under the hull that keeps a boat upright",
        "halyard": "the rope that hoists a sail",
        "tack": "to turn the bow through the wind",
        "mast": "the upright pole that carries the sails",
        "galley": "the kitchen on board",
        "rudder": "the blade under water that steers",
    },
    "chemistry": {
        "catalyst": "what speeds a reaction up without being used up",
        "isotope": "an atom of the same element with another number of neutrons",
        "solvent": "the liquid in which something is dissolved",
        "oxidation": "the loss of electrons",
        "reduction": "the gain of electrons",
        "polymer": "a large molecule of many repeated parts",
        "ion": "an atom or molecule with an electric charge",
        "precipitate": "a solid that forms in a solution",
        "sublimation": "turning from solid to gas without melting",
        "titration": "finding a concentration by adding a known solution drop by drop",
    },
}


def domain_vocabulary(dice: random.Random) -> list[Row]:
    """A description and four terms of its field."""
    return [
        _item(dice, field, term, meaning, [other for other in terms if other != term])
        for field, terms in FIELDS.items()
        for term, meaning in terms.items()
    ]


def _item(dice: random.Random, field: str, term: str, meaning: str, others: list[str]) -> Row:
    offered = [term, *dice.sample(others, 3)]
    dice.shuffle(offered)
    choices = dict(zip(LETTERS, offered, strict=True))
    listed = " ".join(f"{letter}) {one}" for letter, one in choices.items())
    prompt = f"Which term of {field} fits: {meaning}? {listed}"
    return row(prompt, LETTERS[offered.index(term)], options={"choices": choices})
