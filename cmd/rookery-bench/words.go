package main

// The words that names are made of. Each list is in order, so that counting
// users upwards gives their mailboxes in name order.
var (
	givenNames = []string{
		"adam", "agnes", "alice", "amir", "andrea", "anna", "anton", "beatriz", "boris", "carla", "chen", "clara", "daniel",
		"dilara", "dmitri", "elena", "emil", "erik", "eva", "fatima", "felix", "francois", "gina", "grace", "hana", "hugo",
		"ines", "ivan", "jana", "jonas", "julia", "kenji", "klaus", "lars", "leila", "linda", "luca", "marco", "maria", "mehmet",
		"mia", "nadia", "nils", "olga", "omar", "paula", "pedro", "priya", "rosa", "samuel", "sofia", "stefan", "tariq", "thea",
		"tomas", "ursula", "viktor", "wanda", "yara", "zoe",
	}
	familyNames = []string{
		"abel", "ahmed", "almeida", "andersson", "bauer", "becker", "bianchi", "brown", "castro", "cohen", "costa", "diaz",
		"dubois", "eklund", "engel", "ferrari", "fischer", "garcia", "gruber", "haas", "hansen", "hoffmann", "horvat", "ito",
		"ivanova", "jansen", "johnson", "kaya", "kim", "klein", "koch", "kowalski", "lang", "larsen", "lehmann", "lopez",
		"martin", "mayer", "mensah", "moreau", "mueller", "nagy", "nguyen", "novak", "okafor", "oliveira", "patel", "petrov",
		"popescu", "quinn", "ricci", "rossi", "santos", "sato", "schmidt", "silva", "smith", "svensson", "tanaka", "taylor",
		"torres", "tran", "urban", "vargas", "virtanen", "wagner", "weber", "wilson", "wolf", "yilmaz", "zhang", "zimmermann",
	}
	// folders are what stands behind the inbox's name, in the order of their
	// names; the first is the inbox itself.
	folders = [foldersPerUser]folder{
		{"", ""},
		{".Archive", `\Archive`},
		{".Archive.2023", ""},
		{".Archive.2024", ""},
		{".Archive.2025", ""},
		{".B&APw-cher", ""},
		{".Drafts", `\Drafts`},
		{".Family", ""},
		{".Junk", `\Junk`},
		{".Lists", ""},
		{".Lists.announce", ""},
		{".Lists.dev^talk", ""},
		{".Projects", ""},
		{".Projects.Budget", ""},
		{".Projects.Website", ""},
		{".Receipts", ""},
		{".Sent", `\Sent`},
		{".Templates", ""},
		{".Trash", `\Trash`},
		{".Travel", ""},
	}
	// sharedRights are what the users that a folder is shared with may do.
	sharedRights = []string{"lrs", "lrswi", "lrswipkxte"}
)

type folder struct{ suffix, specialUse string }
