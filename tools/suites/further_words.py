"""Nouns and verbs for a new sample of the stratum `forms`: the shipped suite has used up those of `words`."""

from __future__ import annotations

from suites.words import listed, paired

ODD_NOUNS = paired(
    """
    analysis=analyses bacterium=bacteria basis=bases bookshelf=bookshelves businessman=businessmen
    businesswoman=businesswomen chairman=chairmen crisis=crises criterion=criteria diagnosis=diagnoses
    doorman=doormen dormouse=dormice elf=elves embargo=embargoes eyetooth=eyeteeth fireman=firemen
    fisherman=fishermen forefoot=forefeet gentleman=gentlemen grandchild=grandchildren housewife=housewives
    hypothesis=hypotheses jackknife=jackknives midwife=midwives milkman=milkmen nucleus=nuclei oasis=oases
    parenthesis=parentheses penknife=penknives phenomenon=phenomena policewoman=policewomen postman=postmen
    salesman=salesmen saleswoman=saleswomen schoolchild=schoolchildren self=selves sheaf=sheaves snowman=snowmen
    stepchild=stepchildren stimulus=stimuli superman=supermen thesis=theses torpedo=torpedoes veto=vetoes
    werewolf=werewolves
    """
)
Y_NOUNS = listed(
    """
    ability activity agency ally army artery assembly authority battery beauty bunny canary candy category cavalry
    cavity celebrity century ceremony charity colony comedy community curry dairy democracy deputy dictionary
    difficulty discovery dummy economy emergency entry fairy fantasy ferry folly galaxy grocery hobby identity
    industry injury inquiry ivy kitty laboratory liberty lobby lorry luxury melody ministry minority monopoly mummy
    mystery nanny navy necessity novelty opportunity pantry pastry penalty poppy property quality query remedy
    robbery salary secretary society strategy subsidy summary sympathy symphony territory theory therapy tragedy
    treaty trophy university utility variety victory
    """
)
REGULAR_NOUNS = listed(
    """
    animal ankle answer ant arrow artist badge balloon banana beach beak beard beast belt bike blanket block bomb
    bone border bottom brain branch brush bubble building bull bush cabin cable cage calendar captain carrot cave
    ceiling chain chapter cheek chicken chimney circle circus coach collar college comb corner costume cottage couch
    cow crab crown cucumber curtain cushion daughter dentist desert dinner dragon drawer driver eagle ear elbow
    elephant eye face farm farmer feather film finger fist flame flute forest fountain frog fruit garage garlic
    ghost giant glacier grape guest hand harbour hawk heart helmet hospital hotel human insect iron jar jewel kettle
    kite kitten lawyer leg lemon lesson lip lizard lock map mask meal medal melon minute mirage mug museum neck
    necklace net nose notebook novel nut ocean office onion orchard owl package palace parrot patch path peach pear
    pen picture pig pigeon pilot pipe pirate pitch planet plant poem poet pool porch present prince prison puzzle
    rabbit rainbow rat razor recipe ribbon robot rocket rug sailor sandwich scarecrow scientist seat secret shadow
    shark sheet shop shoulder shower singer sister skirt sleeve snail soldier song soup spider sponge statue stick
    storm suitcase sweater switch sword temple thumb tourist trumpet tunnel turtle umbrella uncle vase vegetable
    visitor voice volunteer waiter wallet wave whale whistle wing wizard wrist
    """
)
ODD_VERBS = paired(
    """
    arise=arose beat=beat become=became befall=befell bend=bent bind=bound bite=bit bleed=bled blow=blew breed=bred
    burst=burst cast=cast cling=clung cost=cost creep=crept cut=cut deal=dealt dig=dug feed=fed fight=fought
    flee=fled fling=flung forbid=forbade foresee=foresaw forgive=forgave freeze=froze grind=ground hide=hid hit=hit
    hurt=hurt kneel=knelt lay=laid lead=led lend=lent let=let mean=meant mislead=misled mistake=mistook
    misunderstand=misunderstood outgrow=outgrew overcome=overcame overhear=overheard oversleep=overslept
    overtake=overtook overthrow=overthrew put=put quit=quit rebuild=rebuilt redo=redid repay=repaid retell=retold
    rewrite=rewrote rise=rose seek=sought shake=shook shed=shed shoot=shot shrink=shrank shut=shut sink=sank
    slide=slid sling=slung slit=slit spin=spun split=split spread=spread spring=sprang stick=stuck sting=stung
    stink=stank strike=struck string=strung swear=swore sweep=swept swing=swung tear=tore thrust=thrust
    undergo=underwent undertake=undertook undo=undid unwind=unwound uphold=upheld upset=upset weep=wept
    withdraw=withdrew withhold=withheld withstand=withstood wring=wrung
    """
)
DOUBLING_VERBS = listed(
    """
    ban bat blot brag bud chip clip clot commit compel control cram crop dip drip drum equip excel fan fit flap flip
    flop fret gag grin grip hem hum jam jot knot lag lap log mob mop mug nab nag net nip omit pin plod plot plug pop
    prod prop propel quip ram rebel refer regret rip rot sag scan scar scrap scrub shrug sin sip skid skim slam slap
    slim slot slug snap snip snub sob spot star stem stir strap strip strum stun submit sum tag thin throb tip top
    transfer transmit trek trim trot tug wag wrap zip
    """
)
Y_VERBS = listed(
    """
    accompany amplify clarify classify comply defy deny dirty envy fry identify imply justify magnify modify
    multiply notify occupy pity purify qualify rely satisfy simplify supply terrify tidy unify vary verify
    """
)
REGULAR_VERBS = listed(
    """
    accept act admire adopt advise agree allow amuse announce appear approach argue arrange arrive attach attack
    avoid bark bathe behave belong bless blink bloom borrow bounce bow breathe bump burn camp care cause celebrate
    change charge chase cheat check cheer chew claim close collect comb compare compete complain complete connect
    consider contain continue cough cover crack crash crawl cross damage decide decorate delay depend describe
    destroy detect develop disappear discover divide double doubt drown dust earn employ encourage end enjoy enter
    escape examine excite exist expect explain explode explore face fade fail fear fetch film fold force form
    frighten gather glow guard guide hammer handle happen harm hate heal heat ignore imagine improve include
    increase inform insist join judge kill kiss knock land last launch lick like load manage march mark match
    measure melt mend mention moan mow nail name notice obey object observe offer own pack park peel perform phone
    polish pour praise pray prepare press pretend prevent print produce promise protect punish puzzle question race
    realise receive recognise record reduce refuse relax release remain remind remove repeat replace report rescue
    rinse roll rush sail scare scratch scream search settle shiver sigh slow sneeze sniff snore solve sound spare
    spoil spray squeeze stare stay stitch stretch suffer suggest support suppose surprise surround suspect switch
    taste tease tempt tick tickle tie tow trade trick trust twist type unite vanish wander waste whisper whistle
    wipe wonder yawn yell
    """
)
