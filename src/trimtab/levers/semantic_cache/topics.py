"""Texts whose right answer depends on when they are asked, or on who asks: found by their words.

A text that is missed gets an old or another user's answer; one that is found by mistake only costs a hit. Yet words
such as "today" or "my" stand in many questions whose answer they do not change ("I paid today, how long does it
take?"), so neither list takes a word for proof:

* Time: some phrases always ask for the state of the world (weather, prices, scores, the clock). Words that place
  something in time ("today", "last week", "currently") count unless the user reports what happened to themselves, for
  then the answer is about the case and not about the day. "Who is currently CEO?" counts, "I am currently unable to log
  in" does not. The price: "What can I do in Rome right now?" is missed, for it has the same form.
* Person: only where a right answer must contain the user's own data ("what is my balance"), or where the text names a
  case by its number. "My card has not arrived" and "how do I see my balance" have one answer for everybody.

English, with the commonest phrases of German, French and Spanish; other languages are not looked into.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec


class _Kind(msgspec.Struct, frozen=True):
    """One kind of question: a text with none of `words` in it, or none of `owners`, is not searched."""

    reason: str
    words: frozenset[str]
    pattern: re.Pattern[str]
    owners: frozenset[str]
    weak: bool = False  # places something in time, and counts only if nobody reports it


def _kind(reason: str, words: str, pattern: str, *, owners: str = "", weak: bool = False) -> _Kind:
    needed = frozenset(words.split())
    compiled = re.compile(rf"\b(?:{pattern})(?!\w)", re.VERBOSE)
    return _Kind(reason, needed, compiled, frozenset(owners.split()) or needed, weak)


# The texts are in lower case, with plain apostrophes. `test_every_match_has_a_word` holds words and patterns together.

_DAYS: Final = "(?:mon|tues|wednes|thurs|fri|satur|sun)day"
_SPAN: Final = "(?:second|minute|hour|day|night|week|weekend|month|quarter|year)"
_COIN: Final = "(?:gold|silver|oil|gas|petrol|gasoline|diesel|bitcoin|btc|ethereum|eth|crypto)"
_MONEY: Final = (
    "(?:usd|us[ ]dollars?|dollars?|bucks|eur|euros?|gbp|pounds?|sterling|yen|jpy|francs?|chf|pesos?|rupees?|inr|rubles?"
    "|yuan|rmb|won|krw|cad|aud|kroner|kronor|lira|rand|real|reais)"
)

_OWN: Final = (  # what only the user's own records can fill in
    r"(?:balances?|(?:account|routing|order|tracking|policy|member|membership|customer|reference|card"
    r"|confirmation|phone)\ (?:numbers?|id|no)"
    r"|iban|credit\ (?:score|limit|rating)|pin|pin\ (?:number|code)|passcode|password|user\ ?name|name|nickname"
    r"|salary|pay\ ?check|pay\ ?day|spending|spendings"
    r"|expenses|transactions?|purchases?|statement|bills?|invoices?|payment\ due|due\ date|minimum\ payment"
    r"|rewards?|reward\ points|points|miles"
    r"|(?:pto|vacation|sick|holiday)(?:\ days?|\ time|\ leave)?(?:\ balance)?|days\ off|appointments?"
    r"|reservations?|bookings?|schedule|calendar|agenda"
    r"|meetings?|reminders?|orders?|packages?|parcels?|deliver(?:y|ies)|shipments?|subscriptions?|location"
    r"|address|email(?:\ address)?|birthday|age"
    r"|(?:to\ ?do|shopping|grocery)\ list|lists?|debts?|rent|income|savings|interest\ rate|apr|gas\ level"
    r"|tire\ pressure)"
)
_SENT: Final = r"(?:orders?|packages?|parcels?|deliver(?:y|ies)|shipments?|items?|stuff|application|claim)"
_LIST: Final = r"(?:to\ ?-?do|shopping|grocery|reminder|task|chores?)\ list|calendar|agenda|schedule"

_TIME: Final = (
    _kind(
        "the clock",
        "time date day month year until till til spät uhr tag datum heure jour hora día fecha",
        rf"""
        what(?:'?s|\ is)?\ (?:the\ |today'?s\ )?(?:current\ |exact\ |local\ )?(?:time|date)
            (?=\ ?(?:\?|$|is\ it|in\ [a-z]|at\ [a-z]|over\ |there|here|right|today|please|for\ me|of\ (?:the\ )?day))
      | what\ (?:day|date|month|year)(?:\ of\ (?:the\ )?(?:week|month|year))?\ (?:is\ it|it\ is|is\ today|are\ we)
      | (?:current|local|exact)\ (?:time|date)\b(?!\ ?zone)
      | (?:tell|give)\ me\ the\ (?:time|date)\b(?!\ (?:my|when|i|of|for)\b|\ ?zone)
      | how\ (?:many\ \w+|long|much\ (?:time|longer))\ (?:are\ |is\ |do\ we\ have\ )?(?:it\ )?(?:there\ )?
          (?:left\ )?(?:until|till|til)\ (?:the\ )?(?:next\ )?
            (?:christmas|x-?mas|halloween|thanksgiving|easter|new\ year|ramadan|diwali|hanukkah|{_DAYS}|weekend
                |summer|winter|spring|fall|autumn|election|super\ bowl
            |world\ cup|olympics|january|february|march|april|may|june|july|august|september|october|november
                |december)\b
      | wie\ spät\ ist | wie\ ?viel\ uhr | welcher\ tag\ ist | welches\ datum
      | quelle\ heure\ est | quel\ jour | quelle\ est\ la\ date
      | qué\ hora\ es | que\ hora\ es | qué\ día\ es | a\ qué\ fecha\ estamos
        """,
    ),
    _kind(
        "weather",
        "weather rain snow hail raining snowing storming sunny cloudy windy foggy freezing cold hot warm "
        "humid temperature degrees wetter wettervorhersage wetterbericht regnet météo temps tiempo clima",
        r"""
        (?:what|how)(?:'?s|\ is|\ will|\ was)?\b.{0,24}\bweather\b(?!\ (?:and|works?|forms?|affects?))
      | weather\ (?:like|report|today|tonight|tomorrow|now|outside|this|next|forecast\ (?:for|in|today|tomorrow))
      | (?:is|will|was|does)\ it\ (?:be\ |going\ to\ |gonna\ |supposed\ to\ )?
            (?:rain|snow|hail|raining|snowing|storming|sunny|cloudy|windy|foggy|freezing|(?:cold|hot|warm
                |humid)\ (?:out|in|at))\b
      | (?:temperature|degrees|hot|cold|warm)\ (?:is\ it\ )?(?:outside|out\ there)
      | chance\ of\ (?:rain|snow)
      | (?:wie\ (?:ist|wird)\ das\ |das\ )wetter | wettervorhersage | wetterbericht | regnet\ es
      | météo | quel\ temps\ (?:fait|fera)
      | qué\ tiempo\ (?:hace|hará) | (?:el\ )?pronóstico\ del\ tiempo | (?:cómo\ está\ )el\ clima
        """,
    ),
    _kind(
        "news",
        "news headlines trending nachrichten meldungen schlagzeilen nouvelles actualités infos noticia noticias",
        r"""
        (?:breaking|latest|recent|top|today'?s|current|live|local)\ (?:\w+\ )?(?:news|headlines)
      | in\ the\ (?:news|headlines) | news\ (?:about|on|from|today|update) | any\ (?:\w+\ )?news\b
          | what'?s\ the\ news
      | trending
      | (?:neueste|aktuelle|letzte)n?\ (?:nachrichten|meldungen) | schlagzeilen
      | dernières\ (?:nouvelles|actualités|infos) | les\ actualités
      | últimas?\ noticias? | noticias\ de
        """,
    ),
    _kind(
        "prices",
        "price prices share shares stock gold silver oil gas petrol gasoline diesel bitcoin btc ethereum eth "
        "crypto rate rates usd dollar dollars bucks eur euro euros gbp pound "
        "pounds sterling yen jpy franc francs chf peso pesos rupee rupees inr ruble rubles yuan rmb won krw "
        "cad aud kroner kronor lira rand real reais aktienkurs börsenkurs wechselkurs bitcoinkurs kurs "
        "goldpreis ölpreis benzinpreis cours taux precio cambio",
        rf"""
        (?:stock|share|bitcoin|btc|crypto|gold|oil)\ (?:market\ )?prices?\b
      | price\ of\ (?:a\ (?:share|barrel)|{_COIN}|\w+\ (?:stock|shares))\b
      | (?:much\ (?:is|are|does)|worth\ of|value\ of)\ (?:a\ |one\ |1\ )?(?:{_COIN}|\w+\ (?:stock|shares))\b
          (?!\ (?:cards?|accounts?))
      | what(?:'?s|\ is|\ are)\ (?:the\ |your\ |today'?s\ )?(?:(?!an?\ )\w+\ )?exchange\ rates?
            (?=\ ?(?:[?.]|$|right|now|today|between|from|to\b|of|in\b|like|at\b|for\ (?:the\ )?{_MONEY}))
      | (?:tell\ me|give\ me|show\ me|check|know|wondering|find\ out)\ (?:what\ )?(?:the\ |your\ |today'?s\ )?
          (?:current\ |\w+\ )?exchange\ rates?
            (?=\ ?(?:[?.]|$|(?:is|are)\ ?(?:[?.]|$)|right|now|today|between|from|of|for\ (?:the\ )?{_MONEY}))
      | exchange\ rates?\ (?:right\ now|now|today|(?:for|of|between|from|to)\ (?:\w+\ )?{_MONEY})\b
      | {_MONEY}\ to\ (?:\w+\ )?{_MONEY}\ (?:exchange|conversion)?\ ?rate
      | (?:exchange|conversion|convert)\b.{{0,24}}\d[\d,.]{{0,15}}\ (?:\w+\ )?{_MONEY}\b
      | \d[\d,.]{{0,15}}\ (?:\w+\ )?{_MONEY}\ (?:is\ |are\ )?(?:worth\ )?(?:in|to|into|for)\ (?:\w+\ )?{_MONEY}\b
      | how\ (?:many|much)\ (?:\w+\ )?{_MONEY}\ (?:is|are|do|can|will|would|for|equals?|to
          |in)\b.{{0,30}}\b{_MONEY}\b
      | {_MONEY}\ worth\ (?:in|of)\ (?:\w+\ )?{_MONEY}\b
      | (?:aktien|börsen|wechsel|bitcoin-?)kurs | (?:gold|öl|benzin)preis
      | cours\ (?:de\ (?:l'action|la\ bourse|l'or)|du\ (?:bitcoin|dollar|pétrole)) | taux\ de\ change
      | precio\ (?:de\ la\ acción|de\ las\ acciones|del\ (?:oro|petróleo|bitcoin)) | tipo\ de\ cambio
        """,
    ),
    _kind(
        "an event under way",
        "live score winning ahead leading playing won flight plane train bus traffic busy crowded packed wait "
        "waiting line queue next staumeldung verkehrslage steht scores",
        r"""
        live\ scores? | (?:what(?:'?s|\ is|\ was)|final)\ the\ score | who(?:'?s|\ is)\ (?:winning|ahead|leading
            |playing)
      | who\ won\ the\ (?:game|match|race|fight|election)\b(?!.{0,200}\b\d{4}\b)
      | flight\ [a-z]{1,3}\ ?\d+ | (?:eta|arrival|boarding|departure)\b.{0,24}\b(?:flight|plane|train)\b
          | flight\ status | status\ of\ .{0,20}\b(?:flight|train|bus)\b
      | (?:is|has|did|will|when|what|where)\b.{0,30}\b(?:flight|plane|train)\b.{0,40}
            \b(?:on\ time|delayed|lands?|landed|landing|arriv\w+|board\w*|depart\w*|leav\w+|take\ ?off|scheduled
                |get(?:ting)?\ in)\b
      | (?:how(?:'?s|\ is|\ bad\ is|\ heavy\ is|\ long)|is\ there(?:\ any|\ a\ lot\ of|\ much|\ bad|\ heavy)?|what
          (?:'?s|\ is)|are\ there(?:\ any)?|any)
            \ (?:the\ )?traffic\b(?!\ \w+(?:ed|ing)\b)
      | is\ (?:the\ )?traffic\b(?!\ \w+(?:ed|ing)\b) | traffic\ (?:predictions?|patterns?|like|is\ (?:\w+\ )?like
          |at|report|update|jams?|conditions|delays?|right|on\ (?:the|my|i-?\d|\w+\ (?:st|ave|road|street)))
      | how\ (?:busy|crowded|packed)\b | how\ (?:long|bad)\ (?:is|are|will)\ (?:be\ )?the\ (?:wait|line|queue)\b
          (?!\ (?:for\ (?:my|an?)|until)\b)
      | (?:is|are|will)\ .{1,40}\b(?:busy|crowded|packed)\b
      | wait(?:ing)?\ (?:time\ )?(?:like\ |is\ )?(?:at|for)\ (?:a\ table|[a-z' ]{2,30}(?:'s|restaurant|grill
          |garden|house))\b
      | (?:when|what)(?:'?s|\ is|\ are|\ does)\ the\ next\b(?!\ (?:step|stage|level|part|thing|move|question))
      | staumeldung | verkehrslage | wie\ steht\ es\ (?:im|beim)
        """,
    ),
    _kind(
        "the newest",
        "latest newest recent date current upcoming neueste neuesten aktuelle aktuellen aktueller aktuelles "
        "récent dernière dernier actuel actual última",
        r"""
        (?<!at\ the\ )(?:latest|newest|most\ recent|up[\ -]to[\ -]date)\b(?!\ (?:i|we|you|he|she|they|time|date|by
            |that)\b)
      | (?<!my\ )(?<!your\ )(?<!our\ )(?<!his\ )(?<!her\ )(?<!alternating\ )(?<!direct\ )(?<!electric\ )
          (?<!electrical\ )
        (?<!ocean\ )(?<!the\ )current\ (?!(?:accounts?|through|in|flow|flows|density|law|divider|sensor|directory
            |user|working|password|address|pin)\b)\w
      | (?:what|who|where|how)(?:'?s|\ is|\ are)\ the\ current\ (?!(?:accounts?|through|in|flow|density|directory
          |user|working)\b)\w
      | (?<=the\ )current\ (?:\w+\ )?(?:prices?|rates?|president|prime\ minister|chancellor|ceo|king|queen|pope
          |champions?|version|temperature
            |population|inflation|minimum\ wage|governor|mayor|government|events?|situation|traffic|wait)\b
      | upcoming\b
      | (?:der|die|das|den)\ neuesten? | (?:der|die|das|den)\ aktuellen? | aktuelle[rs]?\ (?:stand|lage|kurs|preis
          |zins\w*|version)
      | (?:le|la|les)\ (?:plus\ récent|dernière\ version|dernier\ modèle) | (?:prix|président|premier\ ministre
          |gouvernement|cours|taux|situation)\ actuel
      | (?:presidente|precio|gobierno|valor|situación|versión)\ actual | última\ versión
        """,
        weak=True,
    ),
    _kind(
        "now",
        "now currently presently moment present time still today far jetzt derzeit zurzeit momentan gerade "
        "maintenant actuellement ahora actualmente momento",
        r"""
        right\ now | (?<!by\ )(?<!until\ )(?<!till\ )(?<!before\ )(?<!for\ )now(?=\s*(?:[?.!]|$)) | open\ now |
            (?<!do\ you\ )currently | presently
      | at\ (?:the|this|present)\ (?:current\ )?(?:moment|time|present)\b(?!\ (?:of|when|in|that)) | as\ of\ (?:now
          |today) | so\ far\ this
      | still\ (?:alive|open|president|prime\ minister|ceo|married|in\ office)\b
      | jetzt | derzeit | zurzeit | momentan | im\ moment | gerade\ (?:jetzt|im)
      | maintenant | en\ ce\ moment | actuellement
      | ahora(?:\ mismo)? | actualmente | en\ este\ momento
        """,
        weak=True,
    ),
    _kind(
        "a day seen from now",
        "today tonight tomorrow yesterday this next last past coming ago now heute gestern vorgestern "
        "übermorgen morgen diese diesen dieser dieses diesem nächste nächsten nächster nächstes nächstem "
        "letzte letzten letzter letztes letztem aujourd demain avant hier cette ce semaine année mois hoy "
        "ayer anoche mañana esta este semana mes año próximo próxima",
        rf"""
        today | tonight | tomorrow | yesterday
      | (?:this|next|last|past|coming)\ (?:{_SPAN}s?|morning|afternoon|evening|{_DAYS}|summer|winter|spring|fall
          |autumn|season|january|february
            |march|april|june|july|august|september|october|november|december)\b
      | (?:in|within|over|for|during)\ the\ (?:next|last|past|coming)\ (?:\d+|few|couple|several|{_SPAN}s?)\b
      | \d+\ {_SPAN}s?\ (?:ago|from\ now) | (?:an?|few|couple\ of|many|several)\ {_SPAN}s?\ ago
      | heute | gestern | vorgestern | übermorgen | (?<!guten\ )(?<!am\ )(?<!jeden\ )(?<!den\ )(?<!der\ )morgen
      | (?:diese|nächste|letzte)[nrsm]?\ (?:woche|monat|monats|jahr|jahres|wochenende|montag|dienstag|mittwoch
          |donnerstag|freitag|samstag|sonntag)
      | aujourd'hui | demain | avant-hier | d'hier | hier\ (?:soir|matin)
      | (?:cette|ce)\ (?:semaine|année|mois|soir|matin|week-end) | (?:semaine|année|mois)\ (?:prochaine?|dernière?
          |dernier)
      | hoy | ayer | anoche | (?<!la\ )mañana
      | est[ea]\ (?:semana|mes|año|noche|tarde|fin\ de\ semana) | (?:semana|mes|año)\ (?:pasad[oa]|que\ viene)
          | próxim[oa]\ (?:semana|mes|año)
        """,
        weak=True,
    ),
)

_PERSON: Final = (
    _kind(
        "own data",
        "balance balances number numbers id no iban score limit rating pin passcode password user username "
        "name nickname salary paycheck check payday pay day spending spendings expenses transaction "
        "transactions purchase purchases statement bill bills invoice invoices due payment reward rewards "
        "points miles pto vacation sick holiday off appointment appointments reservation reservations booking "
        "bookings schedule calendar agenda meeting meetings reminder reminders order orders package packages "
        "parcel parcels delivery deliveries shipment shipments subscription subscriptions location address "
        "email birthday age list lists debt debts rent income savings rate apr level pressure am "
        "call called city town state street country place amount total",
        rf"""
        what(?:'?s|\ is|\ are|\ was|\ were|\ will\ be)\ (?:on\ |in\ |left\ on\ |left\ in\ |up\ with\ )?(?:the\ )?
            (?:\w+\ (?:of|on|in|for)\ )?my\ (?!\w+\ \w+\ (?:to|for)\ )
            (?:[\w'&]+\ ){{0,4}}?{_OWN}\b(?!\ (?:mean|supposed|used|based|limit|options?|history\ mean|not|wrong
                |pending|negative|for)\b)
      | (?:^|[.,?!;\n]\ *|please\ |(?:can|could|will|would)\ you\ |(?:want|need|like
          |love)\ (?:you\ )?to\ |let\ me\ )(?:please\ )?
            (?:show|tell|give|read|list|display|pull\ up|look\ up|bring\ up|see|know|check|find|find\ out|track)[ ]
            (?:me\ |on\ |out\ |us\ )*
                (?:what\ |how\ much\ |all\ |of\ |the\ |is\ |are\ |in\ |status\ )*my\ (?:[\w'&]+\ ){{0,4}}?{_OWN}\b
      | (?:what(?:'?s|\ is|\ are)|tell\ me|give\ me|show\ me|check|wanna\ know|want\ to\ know
          |like\ to\ know)\ (?:the\ )?(?:current\ |total\ )?
            (?:balances?|amount\ due|amount\ owed|minimum\ payment|credit\ limit|due\ date|apr|total\ due)\ (?:on
                |of|in|for)\ (?:all\ )?(?:of\ )?my\b
      | wanna\ know\ my\ (?:[\w'&]+\ ){{0,4}}?{_OWN}\b
      | (?:do\ you\ know|remind\ me(?:\ of)?|what(?:'?s|\ is))\ my\ name | who\ am\ i\b | what\ do\ you\ call\ me
          | what\ am\ i\ called
      | what\ name\ (?:do|did|have)\ you | (?:do\ you\ (?:know|remember)|tell\ me)\ who\ i\ am
      | where\ am\ i\b(?!\ (?:able|allowed|supposed|going|to|covered|being)) | (?:what|which)\ (?:city|town|state
          |street|country|place)\ am\ i\ in
        """,
        owners="my am name me",
    ),
    _kind(
        "own amounts",
        "much many amount points rewards pto vacation off sick money funds cash meeting meetings appointment "
        "appointments reminder reminders miles bill bills transactions credit",
        r"""
        how\ (?:much|many)\b(?!\ (?:times|cards|tries|attempts)).{0,40}?\b
            (?:(?:do|did|have|had)\ i\ (?:still\ |already\ |currently\ )?(?:have|got|owe|owed|spend|spent|spending
                |use|used|earn|earned|make|made|pay|paid|left|accumulated|taken)\b
                (?!\ (?:to|for\ (?:a|an|the)\b.{0,80}(?:fee|transfer|card)))|i\ (?:owe|have\ left|spent|still\ owe
                    |have\ spent)\b|am\ i\ (?:owed|spending))
      | (?:how\ much|what\ amount\ of)\ (?:\w+\ )?(?:do\ i\ have|i\ have|is|are)\ (?:\w+\ )?(?:in|on|left\ (?:in
          |on)|available\ in)\ my\b
      | how\ much\ (?:is|was|are)\ my\ (?:[\w']+\ ){0,3}?(?:bill|balance|statement|rent|paycheck|minimum\ payment
          |last\ transaction|debt)\b
      | how\ (?:much|many)\ (?:[\w']+\ )?(?:points|rewards|pto|vacation|days\ off|sick\ days)\b.{0,20}\b(?:i|my)\b
      | (?<!why\ )do\ i\ (?:currently\ |still\ )?(?:have|got)\ (?:any\ |enough\ |a\ |some\ |the\ )?(?:[\w']+\ )?
            (?:money|funds|cash|meetings?|appointments?|reminders?|pto|vacation|days\ off|points|miles|rewards
                |bills?|transactions|credit)\b
      | is\ there\ (?:any\ |enough\ |sufficient\ )?(?:money|funds)\ in\ my
        """,
        owners="i my",
    ),
    _kind(
        "own status",
        "order orders package packages parcel parcels delivery deliveries shipment shipments item items stuff "
        "application claim request reservation pto vacation flight paycheck time day appointment bill bills "
        "rent check payday pay payment payments next paid list calendar agenda schedule approved scheduled "
        "booked",
        rf"""
        (?:where(?:'?s|\ is|\ are)|(?<!can\ i\ )(?<!do\ i\ )track|locate|whereabouts\ of|(?:what
            |check)\b.{{0,20}}\bstatus\ (?:of|on|for)|status\ (?:of|on)|update\ on|news\ (?:on|about)
            |tracking\ (?:info|information|details?)\ (?:on|for))
            \ (?:the\ )?my\ (?:[\w']+\ ){{0,3}}?(?:{_SENT}|request|reservation|pto|vacation|flight|paycheck)\b
      | (?:has|have|did|is|was|were|are|will)\ my\ (?:[\w']+\ ){{0,3}}?(?:{_SENT}|reservation|pto|vacation
          |time\ off|day\ off|request|flight|appointment)\b.{{0,24}}
            \b(?:ship|shipped|sent|arriv\w+|deliver\w*|here|approved|accepted|denied|confirmed|come|coming|ok\w*
                |processed|cleared|go\ through|still|set|booked)\b
      | when\ (?:will|is|are|does|do|should|can\ i\ expect)\ (?:i\ (?:get|receive)\ )?my\ (?:[\w']+\ ){{0,3}}?
          (?:{_SENT}|bills?|rent|pay\ ?check|payday|payments?\ due|appointment|reservation|flight|next\ \w+)\b
      | when(?:'?s|\ is)\ (?:my\ )?(?:next\ )?pay\ ?day | when\ (?:do|will|am|did)\ i\ (?:get(?:ting)?\ )?paid
      | (?:what|is\ there\ anything|is|are|anything|read)\b.{{0,40}}\bon\ my\ (?:[\w']+\ )?(?:{_LIST})\b
      | (?:did|have|was|were|am)\ i\ (?:already\ |ever\ )?(?:pay|paid|approved|scheduled|booked)\b
        """,
        owners="i my pay payday",
    ),
    _kind(
        "a case's number",
        "order ticket case reference tracking booking account invoice policy claim confirmation customer "
        "member membership flight",
        r"""
        (?:order|ticket|case|reference|tracking|booking|account|invoice|policy|claim|confirmation|customer|member
            |membership|flight\ reservation)
            \b(?:\ (?:number|no|nr|id|code)\b\.?)?(?:\ is\b|:)?\ *[\#:]?\ *(?=[a-z0-9-]{0,40}\d{4})[a-z0-9-]{4,}
        """,
    ),
    _kind(
        "own data",
        "kontostand kontonummer kundennummer bestellnummer iban wo viel wieviel solde numéro où combien saldo "
        "número dónde cuánto",
        r"""
        (?:mein|meinen)\ (?:aktueller\ |aktuellen\ )?kontostand | meine\ (?:kontonummer|kundennummer|bestellnummer
            |iban)
      | wo\ (?:ist|bleibt|sind)\ mein(?:e|en)?\ (?:\w+\ )?(?:pakete?|bestellung|lieferung|sendung)
      | wie\ ?viel\b.{0,20}\b(?:habe\ ich\ (?:\w+\ ){0,4}(?:ausgegeben|bezahlt|verdient)|schulde\ ich)
      | (?:combien|quel\ est)\b.{0,20}\bmon\ solde | mon\ numéro\ de\ (?:compte|commande|client)
      | où\ (?:est|sont|en\ est)\ (?:ma\ (?:commande|livraison)|mon\ colis) | combien\b.{0,20}\b(?:ai-je
          |j'ai)\ (?:\w+\ )?(?:dépensé|payé|gagné)
      | (?:cuál\ es|ver|consultar|dime)\ mi\ saldo | mi\ número\ de\ (?:cuenta|pedido|cliente)
      | dónde\ está\ mi\ (?:pedido|paquete|envío) | cuánto\ (?:gasté|he\ gastado|debo|tengo\ en\ mi)
        """,
    ),
)

# Sentences that tell of the user, in the four languages.
_FIRST: Final = re.compile(
    r"\b(?:i|i'm|im|i've|ive|i'd|i'll|my|mine|me|we|we're|we've|our|us|ich|mich|mir|mein\w{0,2}|wir|uns|unser\w{0,2}"
    r"|je|j'\w+|mon|ma|mes|moi|nous|notre|nos|yo|mi|mis|nosotros|nuestr[oa])\b"
)
_ASKS: Final = re.compile(
    r"\b(?:what|what's|whats|who|who's|whos|when|where|which|how|how's|hows|why|is there|are there|will|should"
    r"|could|can|does|did|do i|do we|do you"
    r"|tell me|show me|give me|remind|wonder|wondering|know|wer|wann|wo|welche\w?|wie|kann|soll|qui|que|quoi"
    r"|quand|où|quels?|quelles?|comment"
    r"|qué|quién|cuándo|dónde|cuál|cómo)\b"
)
# "the transfer I made yesterday" inside a question; "what should I do today" is none.
_TOLD: Final = re.compile(
    r"(?<!should )(?<!can )(?<!do )(?<!did )(?<!could )(?<!must )(?<!will )(?<!may )(?<!would )(?<!shall )"
    r"\b(?:i|we)(?:'ve| have| had)? \w+(?: [\w']+){0,6} $"
)
# Not as the first word: that asks.
_STATES: Final = re.compile(
    r"\w\W+(?:is|are|was|were|has|have|had|isn't|aren't|wasn't|hasn't|haven't|ist|war|hat|est|a été|es|está|fue)\b"
)
_MARKS: Final = ".?!;\n"
_ENDS: Final = re.compile(f"[{_MARKS}]")
_NEAR: Final = 300  # characters of a sentence that are looked at on each side: the time stays linear in the text

_WORDS: Final = re.compile(r"[^\W\d_]+")
_TIME_WORDS: Final = frozenset[str]().union(*(kind.words for kind in _TIME))
_PERSON_WORDS: Final = frozenset[str]().union(*(kind.words for kind in _PERSON))


def about(text: str, *, time: bool = True, person: bool = True) -> tuple[str, str]:
    """Which kind of time-bound question it is, and which kind of the user's own data a right answer must contain.

    "" each if none, or if not asked for.
    """
    plain = text.lower().replace("’", "'")
    found = set(_WORDS.findall(plain))
    return _time_bound(plain, found) if time else "", _personal(plain, found) if person else ""


def _time_bound(plain: str, found: set[str]) -> str:
    words = _TIME_WORDS & found
    if not words:
        return ""
    for kind in _TIME:
        if not kind.words.isdisjoint(words):
            for match in kind.pattern.finditer(plain):
                if not kind.weak or not _reported(plain, match.start(), match.end(), kind.reason):
                    return kind.reason
    return ""


def _personal(plain: str, found: set[str]) -> str:
    words = _PERSON_WORDS & found
    if not words:
        return ""
    for kind in _PERSON:
        if not kind.words.isdisjoint(words) and not kind.owners.isdisjoint(found) and kind.pattern.search(plain):
            return kind.reason
    return ""


def _reported(text: str, start: int, end: int, reason: str) -> bool:
    """Whether the time is part of what the user tells of themselves, and so of the question."""
    low, high = max(0, start - _NEAR), min(len(text), end + _NEAR)
    opens = max(low, *(text.rfind(mark, low, start) + 1 for mark in _MARKS))
    closing = _ENDS.search(text, end, high)
    closes = closing.end() if closing else high
    if not _FIRST.search(text, opens, closes):  # not of the user, but a statement all the same
        sentence = text[opens:closes]
        return not sentence.endswith("?") and not _ASKS.search(sentence) and _STATES.search(sentence) is not None
    if reason == "now":
        return True
    before = text[opens:start]
    return not _ASKS.search(before) or _TOLD.search(before) is not None
