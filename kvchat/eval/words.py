"""The closed word lists of the synthetic world; every word is one token of the tokenizer."""


def names(text: str) -> list[str]:
    """The words of a text."""
    return text.split()


def lines(text: str) -> list[str]:
    """The lines of a text."""
    return text.split("\n")


FIRST = names("""Mara Tobin Elsa Corin Hedda Lukas Ines Bram Odile Jonas Petra Silas Nora Anton
Greta Felix Ida Rufus Clara Edwin Lena Oscar Vera Hugo Alma Casper Thea Otis Wanda Klaus Selma
Ivor Judith Martin Agnes Leopold Bettina Gideon Doris Rolf Frieda Magnus Hester Emil Louisa
Bastian Cora Theo Miriam Arvid Celia Dorian Esther Fabian Gilda Henrik Iris Jasper Katya Linus
Mabel Nestor Olga Pascal Quentin Ramona Stefan Tilda Ulrich Viola Walter Xenia Yorick Zelda Abel
Bianca Cyril Daphne Ernst Flora Gustav Hilda Igor Joanna Konrad Lydia Milo Nadia Orson Paula
Ralph Sonja Tamara Uma Victor Wilma Albin Berta Clemens Dagmar Elias Fanny Georg Helga Isidor
Janna""")

LAST = names("""Voss Alden Harrow Quill Marsh Tanner Birch Holloway Crane Ferris Lindqvist Moss
Pryce Roth Sable Thorne Underhill Vance Wexler Yarrow Ziegler Abbott Bexley Carver Drummond
Ellery Finch Gant Hale Ingram Jarvis Keller Lomax Merrick Nash Orme Pell Rask Sorrel Tully Usher
Varga Whitlock Ames Blythe Corbin Dray Eames Fowler Grieve Hobbs Irons Joyce Kemp Lusk Maddox
Norwood Oakes Pascoe Reeve Strand Teague Upton Vickers Wray Anders Brandt Colby Dunmore Egan
Forsyth Gorse Hurst Ives Jessop Kirk Lang Mercer Nolan Osborne Paget Rudge Selby Trent Unwin
Vogel Wyatt Arkwright Bishop Cutler Dale Emmett Farrow Garrick Hatch Isham Judd Kestrel Lacey
Mallory Napier Otway Pike Radley Stroud Thatcher Venn Wolfe Ashby Bolt Cray Dexter Ewing Frost
Gale Hyde Jolly Knox Lister Monk Niles Onslow Peck Rusk Snell Tate Vail Wick Arlen Barlow Croft
Denby Esmond Flint Glover Hendry Jago Kern""")

_VALUES = {
    "home": """Ashford Brackwater Coldbrook Dunmere Eastwick Fallowby Grimsholm Hartlow Ivyden
        Kelder Larkham Millbrook Northgate Oxcombe Pinehurst Quarley Redmarsh Stonebridge Thornby
        Ulverton Westerby Yewdale Birchover Crowhill Deepford Elmstead Foxley Gullhaven Highmoor
        Langton Marlow Ravenscar Saltwick Tidewell Wyndham Zeal""",
    "trade": """weaving baking milling thatching tanning smithing carpentry masonry brewing
        fishing farming shepherding tailoring printing bookbinding pottery glazing coopering
        dyeing beekeeping saddlery cobbling roofing ferrying teaching nursing clockmaking
        ropemaking papermaking charcoal gardening surveying cartography hunting forestry
        cheesemaking""",
    "colour": """crimson azure ochre indigo scarlet teal violet amber ivory maroon turquoise
        magenta russet beige lavender olive grey black white yellow orange purple brown green
        blue red pink silver golden cream lilac umber sepia cobalt emerald ebony""",
    "stone": """jasper opal garnet agate onyx topaz beryl quartz ruby sapphire pearl jade coral
        marble granite slate flintstone basalt obsidian malachite zircon peridot spinel citrine
        moonstone bloodstone sunstone tourmaline lapis carnelian chalcedony alabaster limestone
        sandstone pumice gneiss""",
    "drink": """cider ale mead tea coffee milk cocoa water perry stout porter wine brandy gin rum
        whisky lemonade buttermilk broth nectar punch sherry port vermouth cordial absinthe sake
        vodka kvass kefir barleywater applejack grog claret tonic squash""",
    "herb": """sage thyme rosemary basil parsley dill mint fennel oregano tarragon chervil lovage
        sorrel borage chives marjoram coriander cumin anise caraway savory hyssop rue yarrowroot
        comfrey tansy catnip valerian chamomile mugwort angelica burdock nettle dandelion
        feverfew woodruff""",
    "boat": """Swallow Petrel Osprey Dolphin Seagull Mermaid Neptune Triton Albatross Heron
        Cormorant Kingfisher Puffin Curlew Gannet Wanderer Pilgrim Fortune Providence Endeavour
        Tempest Zephyr Aurora Comet Meteor Orion Pegasus Phoenix Griffin Unicorn Dragonfly
        Firefly Nightingale Sandpiper Skylark Turnstone""",
    "wood": """oak ash elm beech maple cherry walnut pine larch spruce cedar cypress willow alder
        poplar hazel hornbeam holly juniper chestnut linden aspen rowan hawthorn sycamore teak
        mahogany rosewood boxwood yew pear plum apple almond hickory balsa""",
}

VALUES = {relation: names(text) for relation, text in _VALUES.items()}
RELATIONS = list(VALUES)

_SLOTS = {
    "adj": """plain quiet narrow bright cold warm long heavy broken hollow crowded gentle muddy
        dusty steep low wide pale dark fresh late small large busy patient careful rusty painted
        wooden""",
    "noun": """bridge mill market chapel inn barn orchard well gate fence lane square tower
        cellar kiln harbour ferry meadow hedge quarry school library workshop stable granary
        fountain bakery smithy footpath churchyard""",
    "thing": """lantern ladder basket barrel rope kettle blanket ledger candle wheel saddle
        plough net bell clock letter map bucket shovel stool mirror quilt hammer chain sail coin
        bottle trunk""",
    "time": "morning evening winter summer spring autumn afternoon night",
    "day": "Sunday Monday Tuesday Wednesday Thursday Friday Saturday week month year",
    "beast": "dog cat horse goat goose crow raven fox hen mule bull sheep rook hare swan donkey",
    "people": """children farmers widows sailors merchants travellers neighbours cousins millers
        fiddlers elders strangers pedlars shepherds masons fishermen""",
    "deed": """rested sang argued waited laughed worked slept danced gathered quarrelled
        whispered traded marched prayed wandered listened""",
    "number": "two three four five six seven eight nine ten twelve twenty forty",
}

SLOTS = {name: names(text) for name, text in _SLOTS.items()}

FILLER = lines("""The {adj} {noun} stood beside the {adj} {noun}.
In the {time} the {people} {deed} near the {noun}.
A {beast} slept under the {thing} by the {noun}.
Nobody remembered who had left the {thing} in the {noun}.
After the {time} the {noun} was {adj} again.
The {people} spoke of a {adj} {time} and a {adj} {beast}.
Rain fell on the {noun} for {number} days.
Somebody had hung a {thing} above the door of the {noun}.
The {beast} followed the {people} along the {adj} lane.
It took {number} men to carry the {thing} up the hill.
Every {time} the {people} {deed} until it was dark.
There was a {adj} {thing} on the table.
The road past the {noun} was {adj} and {adj}.
They counted {number} {people} at the {noun} that {day}.
From the {noun} one could see the {adj} river.
The {thing} was sold for {number} coins at the {noun}.
Smoke rose from the {noun} in the {adj} {time}.
The {adj} wind shook the {thing} and the {thing}.
{first} {last} came to the {noun} with a {adj} {thing}.
In the {time} {first} {last} {deed} with the {people}.
The {people} saw {first} {last} near the {adj} {noun}.
{first} {last} owed {number} coins to the {people}.""")

LEADS = lines("""
It is well known that
People say that
By all accounts
As the elders tell it,
According to the ledger,
In the parish book it is written that
The neighbours agree that
Most of the {people} know that
As far as anyone remembers,
Since the {adj} {time},""")

TAILS = lines(""".
.
.
, and nobody doubts it.
, or so the {people} say.
, as it was before the {time}.
, which surprised the {people}.""")

QUESTIONS = lines("""What is the {relation} of {first} {last}?
Tell me the {relation} of {first} {last}.
Do you know the {relation} of {first} {last}?
Please give the {relation} of {first} {last}.
Can you find the {relation} of {first} {last}?
I would like to know the {relation} of {first} {last}.
According to the document, what is the {relation} of {first} {last}?
And what is the {relation} of {first} {last}?""")

FACT = "{the} {relation} of {first} {last} is {value}"
ANSWER = "The {relation} of {first} {last} is {value}."
UNKNOWN = "The {relation} of {first} {last} is unknown. The document does not say."
