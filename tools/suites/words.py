"""Words that the items of the shipped suites are made of."""

from __future__ import annotations

from collections.abc import Collection, Mapping


def listed(text: str) -> list[str]:
    """Words, told apart by whitespace."""
    return text.split()


def paired(text: str) -> dict[str, str]:
    """Words with their forms, as in `child=children`."""
    return dict(pair.split("=") for pair in text.split())


NAMES = listed(
    """
    Ann Bob Carla Dan Eva Frank Grace Hugo Irene Jack Karen Leo Maria Nina Oscar Paula Rosa Sam Tom Vera Alice
    Ben Clara David Emma George Helen Ivan Julia Kevin Laura Mark Nora Paul Ruth Simon Tina Walter
    """
)
WOMEN = listed(
    "Ann Carla Eva Grace Irene Karen Maria Nina Paula Rosa Vera Alice Clara Emma Helen Julia Laura Nora Ruth Tina"
)
CITIES = listed(
    """
    Rome Paris Berlin Madrid Oslo Vienna Dublin Prague Lisbon Athens Tokyo Cairo Lima Boston Chicago Denver
    Sydney London Moscow Warsaw Milan Munich Geneva Seattle Toronto Dallas Budapest Helsinki Naples Miami
    """
)
COLOURS = listed(
    """
    red blue green yellow black white brown grey pink orange purple
    """
)
ADJECTIVES = listed(
    """
    old new long short dark bright warm cold cheap small large fast slow wet dry soft hard clean dirty heavy light empty
    full quiet loud sweet bitter round flat sharp young strong weak rich poor green yellow black white brown
    """
)
THINGS = listed(
    """
    apple bag ball basket bell bench bird boat book bottle bowl box bread brick bridge brush bucket button cake
    camera candle car carpet castle chair clock cloud coat coin cup desk door drum egg engine fence field finger
    fish flag flower forest fork garden gate glass glove guitar hammer hat hill horse house island jacket key
    kitchen knife ladder lake lamp leaf letter lion market mirror mountain needle nest oven paint paper pencil
    piano pillow plane plate pocket pond queen radio ring river road rock roof rope salt school ship shirt shoe
    silver spoon stamp star station stone street sugar table tent tiger tower train tree truck valley village
    violin wagon wall watch wheel window winter wood yard
    """
)

# Nouns whose plural is made by the rules of spelling, and those that go their own way.
REGULAR_NOUNS = listed(
    """
    apple bag bank bed bell bird boat book bottle boy brick bridge bus cake camera car chair church cloud coat
    coin colour cousin cup day desk dish doctor dog door dress duck egg engine fence field flag flower fork fox
    friend game garden gate girl glass glove goat hammer hat head hill horse house island jacket joke judge key
    king lake lamp letter lunch match mirror monkey month mountain nail needle nest nurse orange oven page park
    pencil piano plane plate pocket prize queen ring river road rock roof room school ship shirt shoe snake
    spoon stamp star stone street table tax teacher tent ticket tiger tower toy train tree truck valley village
    wall watch wheel window wish witch word
    """
)
Y_NOUNS = listed(
    """
    baby berry body butterfly cherry city company copy country county daisy diary duty enemy factory family fly
    gallery jury lady library lily memory party penny pony puppy reply spy story strawberry study
    """
)
ODD_NOUNS = paired(
    """
    child=children man=men woman=women mouse=mice tooth=teeth foot=feet goose=geese leaf=leaves
    knife=knives wife=wives wolf=wolves shelf=shelves half=halves loaf=loaves thief=thieves life=lives
    calf=calves potato=potatoes tomato=tomatoes hero=heroes echo=echoes person=people ox=oxen
    policeman=policemen
    """
)
REGULAR_VERBS = listed(
    """
    add answer ask bake boil brush call clean climb cook count dance deliver fill finish follow guess help hunt
    invite jump kick laugh learn lift listen live lock look love miss mix move need open order paint pass pick
    plant play point pull push rain reach remember repair rest return save serve share shout sign smile smoke
    start talk test thank touch train travel turn visit wait walk want warn wash watch wish work
    """
)
DOUBLING_VERBS = listed(
    """
    admit beg chat chop clap drag drop grab hop hug jog nod occur pat plan prefer rob rub shop skip slip step
    stop tap trap trip
    """
)
Y_VERBS = listed(
    """
    apply bury carry copy cry dry empty hurry marry reply study try worry
    """
)
ODD_VERBS = paired(
    """
    go=went see=saw take=took write=wrote begin=began break=broke bring=brought build=built buy=bought
    catch=caught choose=chose come=came do=did draw=drew drink=drank drive=drove eat=ate fall=fell
    feel=felt find=found fly=flew forget=forgot give=gave grow=grew have=had hear=heard hold=held
    keep=kept know=knew leave=left lose=lost make=made meet=met pay=paid ride=rode ring=rang run=ran
    say=said sell=sold send=sent sing=sang sit=sat sleep=slept speak=spoke spend=spent stand=stood
    steal=stole swim=swam teach=taught tell=told think=thought throw=threw understand=understood
    wear=wore win=won
    """
)
CAPITALS = {
    country.replace("_", " "): capital.replace("_", " ")
    for country, capital in (
        pair.split("=")
        for pair in listed(
            """
            Argentina=Buenos_Aires Austria=Vienna Belgium=Brussels Brazil=Brasilia Bulgaria=Sofia
            Canada=Ottawa Chile=Santiago China=Beijing Colombia=Bogota Croatia=Zagreb Cuba=Havana
            Denmark=Copenhagen Egypt=Cairo Ethiopia=Addis_Ababa Finland=Helsinki France=Paris
            Germany=Berlin Greece=Athens Hungary=Budapest India=New_Delhi Iran=Tehran Iraq=Baghdad
            Ireland=Dublin Kenya=Nairobi Mexico=Mexico_City Nepal=Kathmandu Norway=Oslo
            Pakistan=Islamabad Peru=Lima Poland=Warsaw Portugal=Lisbon Romania=Bucharest Russia=Moscow
            Serbia=Belgrade South_Korea=Seoul Spain=Madrid Sweden=Stockholm Thailand=Bangkok
            Turkey=Ankara Ukraine=Kyiv Venezuela=Caracas Vietnam=Hanoi
            """
        )
    )
}


def plural(noun: str, odd: Mapping[str, str] = ODD_NOUNS) -> str:
    """The plural of a noun of the lists; `odd` has those that go their own way."""
    if noun in odd:
        return odd[noun]
    if _ends_in_y(noun):
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "z", "ch", "sh")) else "s")


def past(verb: str, odd: Mapping[str, str] = ODD_VERBS, doubling: Collection[str] = DOUBLING_VERBS) -> str:
    """The past tense of a verb of the lists; `odd` go their own way, `doubling` double their last letter."""
    if verb in odd:
        return odd[verb]
    if _ends_in_y(verb):
        return verb[:-1] + "ied"
    if verb in doubling:
        return verb + verb[-1] + "ed"
    return verb + ("d" if verb.endswith("e") else "ed")


def _ends_in_y(word: str) -> bool:
    return word.endswith("y") and word[-2] not in "aeiou"
